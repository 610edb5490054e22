"""Which artifacts' rows the marker channel can tell, and which caches a client can keep."""

from typing import TYPE_CHECKING

from export.clients.packing import Packing
from export.graphs.spec import PAST_VISUAL, in_order

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact

INSTEAD = "run it with `vtcompress generate`"
"""What is left where a client cannot run an artifact at all."""


def rows_refused(artifact: "Artifact", *, any_cache: bool = False) -> list[str]:
    """Return why an artifact's rows cannot be told by the marker channel, or its caches be counted.

    Args:
        artifact: to be packed.
        any_cache: the client hands back whatever a decoder wants to have again, not keys and values alone.
    """
    manifest = artifact.manifest
    facts, specs = manifest.model, manifest.graphs
    decoder = in_order(specs, "decoder")[0]
    reasons = []
    if facts.decoder.rope_axes is not None or facts.tile_places is not None:
        reasons.append("gives each token one place, and this model turns rows by other positions")
    if facts.decoder.deepstack:
        reasons.append(
            "hands on one row a picture token, and this model has rows of several layers"
        )
    if facts.arrangement is not None:
        reasons.append("does not arrange rows of tiles as this model's pictures ask for")
    if facts.sizes_differ:
        reasons.append("takes pictures of one size, and this model's have sizes of their own")
    if not any_cache and any(cached.name == PAST_VISUAL for cached in decoder.cached):
        reasons.append(
            "keeps keys and values alone, and this plan must also know which rows of the past are visual"
        )
    return [f"{reason}; {INSTEAD}" for reason in reasons]


def chooses(packing: Packing) -> bool:
    """Return whether a part of the visual rows is gone in front of the decoder."""
    return packing.spec("vision").rows_kept is not None
