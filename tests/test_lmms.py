"""Artifacts as a model of lmms-eval, or where it is not installed of a stand-in of its interface (0.7.3)."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from compressor.errors import DataError, VtcompressError
from export.runtime.runtime import Runtime
from tests.models import make_picture


def stand_in() -> dict[str, ModuleType]:
    """Return modules with what `export.evaluation.lmms` takes of lmms-eval."""

    class Lmms:
        def __init__(self) -> None:
            self.rank, self.task_dict = 0, {}

    def messages(messages: list[dict[str, Any]]) -> SimpleNamespace:
        turns = [
            SimpleNamespace(
                role=m["role"], content=[SimpleNamespace(**part) for part in m["content"]]
            )
            for m in messages
        ]
        return SimpleNamespace(messages=turns)

    contents: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "GenerationResult": lambda text, token_counts: SimpleNamespace(
                text=text, token_counts=token_counts
            ),
            "TokenCounts": lambda *counts: counts,
            "Instance": SimpleNamespace,
        },
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.protocol": {"ChatMessages": messages},
    }
    made = {}
    for name, content in contents.items():
        made[name] = ModuleType(name)
        made[name].__dict__.update(content)
    return made


@pytest.fixture(scope="module")
def lmms() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("lmms_eval") is None:
            for name, module in stand_in().items():
                patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "export.evaluation.lmms", raising=False)
        yield importlib.import_module("export.evaluation.lmms")
        sys.modules.pop("export.evaluation.lmms", None)


def request(messages: list[dict[str, Any]], **settings: Any) -> SimpleNamespace:
    arguments = ("", lambda document: document, settings, 0, "t", "test")
    return SimpleNamespace(args=arguments, task_name="t", messages=messages)


def answered(model: Any, *requests: SimpleNamespace) -> list[Any]:
    answers = []
    for one in requests:
        model.task_dict = {"t": {"test": [one.messages]}}
        answers += model.generate_until([one])
    return answers


def user(*parts: Any) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "url": part}
        for part in parts
    ]
    return {"role": "user", "content": content}


def test_a_tasks_conversation_is_answered_as_the_runtime_answers_it(
    lmms: Any, plain_artifact: Path, tmp_path: Path
) -> None:
    picture = Image.open(make_picture(tmp_path / "a.png", seed=1)).convert("RGB")
    model = lmms.CompressedLmm(str(plain_artifact), batch_size="1", device="cpu")
    runtime = Runtime.load(plain_artifact)
    expected = runtime.answer("what is", picture, max_new_tokens=4)
    whole, cut = answered(
        model,
        request([user(picture, "what is")], max_new_tokens=4, do_sample=False, temperature=0),
        request([user(picture, "what is")], max_new_tokens=4, until=[expected.text[2:3], "zzz"]),
    )
    assert whole.text == expected.text
    assert cut.text == expected.text[: expected.text.index(expected.text[2:3])] != expected.text
    assert tuple(whole.token_counts)[1] == len(expected.token_ids)


def test_what_a_task_may_not_ask_for_is_refused_by_name(lmms: Any, plain_artifact: Path) -> None:
    model = lmms.CompressedLmm(str(plain_artifact))
    cases = {
        "asks for 4 beams": request([user("it")], num_beams=4),
        "generation_kwargs best_of: not known": request([user("it")], best_of=3),
        "holds video": request([{"role": "user", "content": [{"type": "video", "url": "v"}]}]),
    }
    for words, one in cases.items():
        with pytest.raises(DataError, match=f"task t, document 0: {words}"):
            answered(model, one)
    for refused in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(VtcompressError, match="t: asks"):
            refused([request([])])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"beams": 2}, "beams: no such option"), ({"batch_size": 8}, "--batch_size 8")],
)
def test_options_are_checked_before_an_artifact_is_opened(
    lmms: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        lmms.CompressedLmm("nowhere", **options)
