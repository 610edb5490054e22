"""Whether two digests of a model's files are of one model.

A digest is two sums with a dot between them: over configuration and weights, and over what else is read of
the folder (processor, tokenizer, chat template, generation settings, index of shards). Older files hold
the first alone.
"""

from collections.abc import Sequence


def same_model(stored: str, current: str) -> bool:
    """Return whether a digest that a file holds is that of the model at hand.

    Args:
        stored: in the file, perhaps of before.
        current: taken now.
    """
    return stored == current or ("." not in stored and stored == current.partition(".")[0])


def difference(stored: str, current: str) -> str:
    """Return in words how two digests of different models differ, in brackets of an error line."""
    (first, _, rest), (wanted, _, others) = stored.partition("."), current.partition(".")
    if first == wanted:
        return (
            "same weights and config.json, but other files of processor, tokenizer or generation: digest "
            f"{rest[:12]}, not {others[:12]}"
        )
    return f"digest {first[:12]}, not {wanted[:12]}"


def alike(digests: Sequence[str]) -> tuple[str, ...]:
    """Return digests such that those of one model are equal: the first sums alone if one has no other."""
    short = any("." not in digest for digest in digests)
    return tuple(digest.partition(".")[0] if short else digest for digest in digests)
