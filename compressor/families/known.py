"""Which families there are: this tool's own, and those that other packages register by an entry point."""

from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from compressor.errors import ModelError, first_line
from compressor.facts import ModelFacts
from compressor.families.base import Family

GROUP = "vtcompress.families"
"""Of the entry points; each names a class without arguments, a `Family`."""

OWN = ("compressor.families.llava.family:LlavaFamily",)


@cache
def families() -> tuple[Family, ...]:
    """Return all families, this tool's own first.

    Raises:
        ModelError: a package's family cannot be loaded, or has the name or a model type of another one.
    """
    own = [EntryPoint(value.rpartition(":")[2], value, GROUP) for value in OWN]
    named = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    found = tuple(_loaded(point) for point in (*own, *named))
    if problems := list(_clashes(found)):
        raise ModelError(problems)
    return found


def supported() -> tuple[str, ...]:
    """Return the `model_type`s that can be compressed."""
    return tuple(kind for family in families() for kind in family.model_types)


def family_of(model_type: str, where: str) -> Family:
    """Return the family that reads `model_type`.

    Raises:
        ModelError: no family does; the supported ones are listed.
    """
    for family in families():
        if model_type in family.model_types:
            return family
    raise ModelError(
        [
            f"{where}: model_type {model_type!r} is not supported; supported: {', '.join(supported())}"
        ]
    )


def family_that_read(facts: ModelFacts) -> Family:
    """Return the family that a model's facts come from.

    Raises:
        ModelError: it is not there any more.
    """
    for family in families():
        if family.name == facts.family:
            return family
    package = facts.family_package or "the package that brings it"
    raise ModelError(
        [f"{facts.name}: its family {facts.family!r} is not installed here: install {package}"]
    )


def _loaded(point: EntryPoint) -> Family:
    """Make the family that an entry point names."""
    try:
        family = point.load()()
    except Exception as failure:
        why = f"cannot be loaded: {type(failure).__name__}: {first_line(failure)}"
        raise ModelError([_broken(point, why)]) from failure
    if not isinstance(family, Family):
        raise ModelError([_broken(point, f"is a {type(family).__name__} and no Family")])
    if not getattr(family, "name", None) or not getattr(family, "model_types", None):
        raise ModelError([_broken(point, "has no name or no model_types")])
    family.package = point.dist.name if point.dist else None
    return family


def _broken(point: EntryPoint, why: str) -> str:
    package = point.dist.name if point.dist else "vtcompress"
    return (
        f"package {package}: its family {point.value} (entry point {point.name!r} of {GROUP}) {why}; update "
        f"or uninstall {package}"
    )


def _clashes(found: tuple[Family, ...]) -> Iterator[str]:
    """Yield a line for each name and model type that two families have."""
    owners: dict[tuple[str, str], Family] = {}
    for family in found:
        for word, of in (("name", family.name), *(("model_type", t) for t in family.model_types)):
            other = owners.setdefault((word, of), family)
            if other is not family:
                yield (
                    f"package {family.package}: its family {family.name!r} has the {word} {of!r}, which "
                    f"{_whose(other)} has too; uninstall one of them"
                )


def _whose(family: Family) -> str:
    return f"the family {family.name!r} of " + (family.package or "vtcompress itself")
