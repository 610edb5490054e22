"""The stage that tells which models can be compressed, and by what."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtcompress.stages.inputs import require_compress

if TYPE_CHECKING:
    from compressor.contract.method import Method


def models() -> tuple[dict[str, Any], ...]:
    """Return what can be compressed: a JSON-like mapping for each family, those of other packages last.

    Of each method `applies` tells whether it does; `without` holds the keys that do not go with the family's
    models, and `why` the reason. A method that cannot be asked for without such a key does not apply.

    Raises:
        MissingExtraError: the packages that read models are not installed.
        ModelError: a family of another package cannot be used.
    """
    require_compress("listing models")
    from compressor.families.known import families
    from compressor.methods import METHODS

    return tuple(
        {
            "family": family.name,
            "package": family.package,
            "model_types": list(family.model_types),
            "decoders": list(family.decoders),
            "methods": [
                {
                    "name": method.name,
                    "package": method.package or None,
                    "applies": not (family.no_grid and _needs(method, method.by_grid)),
                    "without": list(method.by_grid) if family.no_grid else [],
                    "why": family.no_grid if method.by_grid else "",
                }
                for method in METHODS
            ],
        }
        for family in families()
    )


def _needs(method: "type[Method]", keys: Sequence[str]) -> bool:
    """Return whether a method has to be given one of these keys."""
    return any(method.model_fields[key].is_required() for key in keys)
