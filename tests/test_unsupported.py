"""Every model type that transformers knows is supported, or refused by one line that says why."""

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers.models.auto import modeling_auto

from compressor.errors import ModelError
from compressor.families import describe, supported
from compressor.families.unsupported.reasons import REASONS

TYPES = sorted(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
REFUSED = Counter(kind for types in REASONS.values() for kind in types)


def refusal(folder: Path, model_type: str) -> str:
    """Return what is said of a folder that holds nothing but a configuration."""
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelError) as caught:
        describe(str(folder))
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize("model_type", TYPES)
def test_a_type_of_transformers_is_supported_or_refused_with_a_reason(
    model_type: str, tmp_path: Path
) -> None:
    assert (model_type in supported()) != (model_type in REFUSED)
    if model_type in supported():
        return
    line = refusal(tmp_path, model_type)
    (reason,) = [reason for reason, types in REASONS.items() if model_type in types]
    head = f"{tmp_path / 'config.json'}: model_type {model_type!r} is not supported: {reason}; "
    assert line.startswith(f"{head}the nearest supported one is ")
    assert line.rsplit(" ", 1)[1] in supported()
    assert "\n" not in line


def test_a_type_has_one_reason_and_its_nearest_is_another_that_transformers_knows() -> None:
    assert set(REFUSED.values()) == {1}
    assert sorted(REFUSED.keys() | set(supported())) == TYPES
    for types in REASONS.values():
        for model_type, near in types.items():
            assert near != model_type
            assert near in TYPES


def test_a_type_that_nobody_knows_is_told_what_there_is(tmp_path: Path) -> None:
    line = refusal(tmp_path, "vip_llava")
    assert line.endswith(
        f"'vip_llava' is not supported; supported: {', '.join(supported())}; did you mean 'vipllava'?"
    )
