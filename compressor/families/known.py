"""Which families there are: this tool's own, and those that other packages register by an entry point."""

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

from compressor.entry_points import taken
from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.base import Family
from compressor.families.unsupported.reasons import why_unsupported

GROUP = "vtcompress.families"
"""Of the entry points; each names a class without arguments, a `Family`."""

BUILT_IN = (
    "compressor.families.llava.family:LlavaFamily",
    "compressor.families.llava.vipllava:VipLlavaFamily",
    "compressor.families.llava.llava_next:LlavaNextFamily",
    "compressor.families.llava.llava_onevision:LlavaOnevisionFamily",
    "compressor.families.internvl.family:InternVlFamily",
    "compressor.families.internvl.qianfan_ocr:QianfanOcrFamily",
    "compressor.families.smolvlm.family:Idefics3Family",
    "compressor.families.smolvlm.family:SmolVlmFamily",
    "compressor.families.qwen_vl.family:Qwen2VlFamily",
    "compressor.families.qwen_vl.family:Qwen25VlFamily",
    "compressor.families.qwen_vl.qwen3:Qwen3VlFamily",
    "compressor.families.documents.lighton_ocr:LightOnOcrFamily",
    "compressor.families.documents.paddleocr_vl:PaddleOcrVlFamily",
)


@cache
def families() -> tuple[Family, ...]:
    """Return all families, this tool's own first.

    Raises:
        ModelError: a package's family cannot be loaded, or has the name or a model type of another one.
    """
    found: list[Family] = [EntryPoint("", place, GROUP).load()() for place in BUILT_IN]

    def take(kind: Any, package: str, _: str) -> str:
        family = kind()
        if not isinstance(family, Family):
            return f"is a {type(family).__name__}, not a Family"
        family.package = package
        found.append(family)
        return ""

    if problems := taken(GROUP, "family", take) or list(_clashes(found)):
        raise ModelError(problems)
    return tuple(found)


def supported() -> tuple[str, ...]:
    """Return the `model_type`s that can be compressed."""
    return tuple(kind for family in families() for kind in family.model_types)


def family_of(model_type: str, where: str) -> Family:
    """Return the family that reads `model_type`.

    Raises:
        ModelError: no family does; the line says why, where that is known, and names a supported one.
    """
    for family in families():
        if model_type in family.model_types:
            return family
    raise ModelError([f"{where}: {why_unsupported(model_type, supported())}"])


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


def _clashes(found: Iterable[Family]) -> Iterator[str]:
    """Yield a line for each name and model type that two families have."""
    owners: dict[tuple[str, str], Family] = {}
    for family in found:
        for key in (("name", family.name), *(("model_type", t) for t in family.model_types)):
            other = owners.setdefault(key, family)
            if other is not family:
                whose, remedy = other.package or "vtcompress itself", family.package
                if other.package:
                    remedy = f"{other.package} or {remedy}"
                yield (
                    f"package {family.package}: its family {family.name!r} has the {key[0]} {key[1]!r}, "
                    f"which the family {other.name!r} of {whose} has too; remove {remedy}"
                )
