"""Makes one profile of the shards of a calibration, the very one that a run over all samples writes.

Samples stand in the order of the data again. A sum over samples is kept exactly (see
`compressor.contract.exact_sum`), so that the sum of the shards' sums is the sum over all samples to the last
bit, in whatever order they are added.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

from compressor.contract.exact_sum import exactly_added
from compressor.errors import ProfileError
from compressor.profile import Profile
from compressor.samples.questions import MAX_PROBLEMS
from compressor.samples.shard import Shard

Named = tuple[Path, Profile]


def merged(shards: Sequence[Named]) -> Profile:
    """Return the profile that shards are of.

    Args:
        shards: all shards of one calibration, in any order, each with its file.

    Raises:
        ProfileError: one is no shard or unfinished, was measured on another model or other data, or
            otherwise than the first; two are the same, or one is missing. All such, a line each.
    """
    if not shards:
        raise ProfileError(["no shards: give the profiles of all shards of one calibration"])
    if problems := [*_problems(shards)]:
        raise ProfileError(problems)
    ordered = sorted((profile for _, profile in shards), key=_number)
    first = ordered[0]
    samples = tuple(
        ordered[i % len(ordered)].samples[i // len(ordered)] for i in range(first.total)
    )
    sums: dict[str, tuple[Any, ...]] = {
        name: reduce(exactly_added, (part for p in ordered for part in p.sums[name]), ())
        for name in first.sums
    }
    return first.changed(shard=None).with_sums(samples, sums).finished()


def _number(profile: Profile) -> int:
    return profile.shard.number if profile.shard is not None else 0


def _problems(shards: Sequence[Named]) -> Iterator[str]:
    """Yield what forbids merging: each file's own problem, then what files are to each other."""
    alike = []
    for path, profile in shards:
        if profile.shard is None:
            yield f"{path}: is no shard; leave it out, or make one with `vtcompress calibrate --shard`"
        elif len(profile.samples) < profile.wanted:
            held = f"{len(profile.samples)} of {profile.wanted} samples"
            again = f"go on with `vtcompress calibrate --shard {profile.shard}`"
            yield f"{path}: shard {profile.shard} is not finished, it holds {held}; {again}"
        else:
            alike.append((path, profile, profile.shard))
    if not alike:
        return
    path_of: dict[int, Path] = {}
    first_path, first, first_shard = alike[0]
    for path, profile, shard in alike:
        if different := _differences(profile, first):
            yield (
                f"{path}: measured {', '.join(different)} than {first_path}; leave one of them out, or make "
                "it anew with `vtcompress calibrate --shard`"
            )
        elif shard.number in path_of:
            yield f"{path}: shard {shard}, as {path_of[shard.number]} is; leave one of them out"
        else:
            path_of[shard.number] = path
    if len(alike) == len(shards):
        missing = (n for n in range(1, first_shard.of + 1) if n not in path_of)
        for number in islice(missing, MAX_PROBLEMS):
            shard = Shard(number=number, of=first_shard.of)
            make = f"give it, or make it with `vtcompress calibrate --shard {shard}`"
            yield f"{first_path}: shard {shard}, which belongs to it, is missing; {make}"


def _differences(profile: Profile, first: Profile) -> list[str]:
    """Return in which ways a shard was measured otherwise than another, in words."""
    return [
        words
        for differs, words in (
            (
                profile.model_digest != first.model_digest,
                f"on another model ({profile.model})",
            ),
            (
                (profile.data_digest, profile.total) != (first.data_digest, first.total),
                f"on other data ({profile.total} samples of {profile.data}; seed counts too)",
            ),
            (profile.measures != first.measures, f"other things ({', '.join(profile.measures)})"),
            (
                (profile.gate_layers, profile.gates_digest)
                != (first.gate_layers, first.gates_digest),
                "with other gates",
            ),
            (profile.dtype != first.dtype, f"in another dtype ({profile.dtype})"),
            (_of(profile) != _of(first), f"as one of another number of shards ({_of(profile)})"),
        )
        if differs
    ]


def _of(profile: Profile) -> int:
    return profile.shard.of if profile.shard is not None else 0
