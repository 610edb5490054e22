"""The runtime: conversations and kept pictures change no answer, and answers are those of transformers."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import DataError
from compressor.families import load
from compressor.samples.pictures import load_image
from export.runtime.image_prefix import shared_end
from export.runtime.runtime import Runtime
from export.runtime.sampling import AnswerOptions
from tests.models import WORDS, make_picture
from tests.runtimes import exported, in_torch, spied, with_template

TOLERANCE = 1e-4
SPOKEN = WORDS[7:]
TURN = "{{ 'USER:' if m['role'] == 'user' else 'ASSISTANT:' }} "
LOOP = "{% for m in messages %}"
PARTS = (
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}"
)
END = "{% if m['role'] != 'user' %}</s> {% endif %}{% endfor %}"
ASK = "{% if add_generation_prompt %}ASSISTANT:{% endif %}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [make_picture(folder / f"{i}.png", seed=100 + i) for i in range(4)]


@pytest.fixture(scope="module")
def model(llava: Callable[[str], Path]) -> Path:
    return llava("clip+llama")


@pytest.fixture(scope="module")
def identity(plain_artifact: Path) -> Runtime:
    return Runtime.load(plain_artifact, threads=1)


@pytest.fixture(scope="module")
def leaving(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    methods = [{"visual_exit": {"layer": 2}}, {"shortv": {"layers": [0]}}]
    folder = exported(model, tmp_path_factory.mktemp("runtime") / "exit", compress=methods)
    return Runtime.load(folder, threads=1)


@pytest.fixture(
    scope="module",
    params=[
        "exported",
        "frozen layers in torch",
        "three axes in torch",
        "frozen, then exit, exported",
    ],
)
def runtime(
    request: pytest.FixtureRequest, model: Path, identity: Runtime, leaving: Runtime
) -> Runtime:
    return {
        "exported": identity,
        "frozen layers in torch": in_torch(model, [1, 2]),
        "three axes in torch": in_torch(model, [1], axes=(0, 1, 2, 0, 1, 2, 0, 1)),
        "frozen, then exit, exported": leaving,
    }[request.param]


def question(seed: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(SPOKEN, rng.integers(1, 8)))


def first_logits(runtime: Runtime, conversation: Any, images: list[Path]) -> np.ndarray:
    """Logits where the last answer of a conversation begins, everything run at once."""
    ids = runtime.encode(conversation.messages[:-1], runtime.look(images))
    logits, _ = runtime.prefill([runtime.prompt_of(ids, runtime.look(images))])
    return np.asarray(logits[0])


def test_a_turn_runs_its_new_tokens_only_and_answers_as_if_everything_had_run(
    runtime: Runtime, pictures: list[Path]
) -> None:
    """Several conversations, the second turn without picture, the third with a new one."""
    watched, spy = spied(runtime)
    reused = 0
    for seed in range(6):
        conversation, seen = watched.chat(), []
        for turn, new in enumerate([pictures[:1], [], pictures[1:3]]):
            seen += new
            spy.clear()
            answer = conversation.ask(question(10 * seed + turn), new, max_new_tokens=5)
            text = "".join(answer)
            figures = answer.figures
            visual, rows = spy.rows[0]
            assert visual + rows == figures.prompt_rows - figures.reused_rows
            if figures.reused_rows:
                reused += 1
                assert spy.pictures == len(new)
                assert rows < 20
            ids = runtime.encode(conversation.messages[:-1], runtime.look(seen))
            assert figures.prompt_rows == len(ids)
            whole = runtime.replies([runtime.prompt_of(ids, runtime.look(seen))], AnswerOptions(5))[
                0
            ]
            assert answer.token_ids == whole.token_ids
            assert text == whole.text
            assert (
                np.abs(spy.logits[0] - first_logits(runtime, conversation, seen)).max() <= TOLERANCE
            )
    assert reused >= 6, "too few turns went on from the cache for this test to say anything"


def test_the_logits_of_a_later_turn_depend_on_the_cached_picture(
    runtime: Runtime, pictures: list[Path]
) -> None:
    """Guards the test above: a model blind to its cache would pass it."""
    watched, spy = spied(runtime)
    logits = []
    for picture in pictures[:2]:
        conversation = watched.chat()
        list(conversation.ask("what is this", [picture], max_new_tokens=1))
        # The same history with another picture: only the cache can tell.
        conversation._messages[1] = {"role": "assistant", "content": "red"}
        spy.clear()
        list(conversation.ask("b c", max_new_tokens=1))
        assert sum(spy.rows[0]) < 10
        logits.append(spy.logits[0])
    assert np.abs(logits[0] - logits[1]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("written", ["as the template does", "not at all"])
def test_the_end_of_an_answer_is_run_as_the_template_writes_it(
    identity: Runtime, model: Path, pictures: list[Path], tmp_path: Path, written: str
) -> None:
    end = END if written == "as the template does" else "{% endfor %}"
    template = "<s> " + LOOP + TURN + PARTS + end + ASK
    runtime = with_template(identity, model, template, tmp_path / "t")
    # A token that this model says third becomes the end of answers, so that they do end.
    said = runtime.answer("what is this", pictures[:1], max_new_tokens=3).token_ids
    object.__setattr__(runtime.prompter, "eos_ids", said[2:])
    watched, spy = spied(runtime)
    conversation = watched.chat()
    first = conversation.ask("what is this", pictures[:1])
    list(first)
    assert first.token_ids == said
    spy.clear()
    answer = conversation.ask("b", max_new_tokens=3)
    list(answer)
    ids = runtime.encode(conversation.messages[:-1], runtime.look(pictures[:1]))
    assert answer.figures.prompt_rows == len(ids)
    assert answer.figures.reused_rows == len(ids) - sum(spy.rows[0]) > 16
    whole = runtime.replies([runtime.prompt_of(ids, runtime.look(pictures[:1]))], AnswerOptions(3))[
        0
    ]
    assert answer.token_ids == whole.token_ids
    assert np.abs(spy.logits[0] - whole.first_logits).max() <= TOLERANCE


def test_a_template_that_rewrites_earlier_answers_runs_everything_again_and_says_so(
    identity: Runtime, model: Path, pictures: list[Path], tmp_path: Path, caplog: Any
) -> None:
    rewriting = (
        LOOP + TURN + PARTS.replace("part['text']", "'yes ' ~ part['text']") + "{% endfor %}"
    )
    runtime = with_template(identity, model, "<s> " + rewriting + ASK, tmp_path / "t")
    conversation = runtime.chat()
    list(conversation.ask("a b", pictures[:1], max_new_tokens=4))
    with caplog.at_level(logging.INFO):
        answer = conversation.ask("c", pictures[1:2], max_new_tokens=4)
    list(answer)
    assert answer.figures.reused_rows == 0
    assert "run again" in caplog.text
    ids = runtime.encode(conversation.messages[:-1], runtime.look(pictures[:2]))
    whole = runtime.replies([runtime.prompt_of(ids, runtime.look(pictures[:2]))], AnswerOptions(4))[
        0
    ]
    assert answer.token_ids == whole.token_ids


def test_an_answer_left_early_counts_as_far_as_it_came(
    identity: Runtime, pictures: list[Path]
) -> None:
    conversation = identity.chat()
    answer = conversation.ask("what is this", pictures[:1], max_new_tokens=30)
    next(answer)
    said = len(answer.token_ids)
    list(conversation.ask("a", max_new_tokens=2))
    assert said < 30
    assert len(conversation.messages) == 4
    assert (
        answer.token_ids
        == identity.answer("what is this", pictures[:1], max_new_tokens=said).token_ids
    )
    with pytest.raises(StopIteration):
        next(answer)


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(
    identity: Runtime, pictures: list[Path], tmp_path: Path
) -> None:
    conversation = identity.chat()
    list(conversation.ask("what is this", pictures[:1], max_new_tokens=3))
    before = conversation.messages
    with pytest.raises(DataError, match=r"nowhere\.png"):
        conversation.ask("a", [tmp_path / "nowhere.png"])
    with pytest.raises(DataError, match="tokens do not fit"):
        conversation.ask("a", max_new_tokens=10_000)
    assert conversation.messages == before
    assert list(conversation.ask("a", max_new_tokens=3))


def test_twenty_questions_on_kept_pictures_are_answered_as_by_full_runs(
    runtime: Runtime, pictures: list[Path]
) -> None:
    watched, spy = spied(runtime)
    for images in (pictures[:1], pictures[1:3]):
        spy.clear()
        prefix = watched.prefill_image(images)
        assert spy.pictures == len(images)
        assert prefix.rows >= 16 * len(images)
        spy.clear()
        found = [prefix.answer(question(seed), max_new_tokens=6) for seed in range(20)]
        assert spy.pictures == 0
        assert max(sum(rows) for rows in spy.rows) < 20
        for seed, reply in enumerate(found):
            whole = runtime.answer(question(seed), images, max_new_tokens=6)
            assert reply.token_ids == whole.token_ids
            assert np.abs(reply.first_logits - whole.first_logits).max() <= TOLERANCE
    assert len({reply.token_ids for reply in found}) > 5, "all answers alike: nothing was compared"


def test_answers_do_not_depend_on_the_order_of_questions(
    identity: Runtime, pictures: list[Path]
) -> None:
    prefix = identity.prefill_image(pictures[:1])
    forwards = [prefix.answer(question(s), max_new_tokens=6).token_ids for s in range(8)]
    backwards = [prefix.answer(question(s), max_new_tokens=6).token_ids for s in reversed(range(8))]
    assert backwards[::-1] == forwards
    asked = [(question(s), pictures[s % 4 : s % 4 + s % 3]) for s in range(12)]
    alone = [identity.answer(q, images, max_new_tokens=4).token_ids for q, images in asked]
    turned = [identity.answer(q, images, max_new_tokens=4).token_ids for q, images in asked[::-1]]
    assert turned[::-1] == alone


@pytest.mark.parametrize(
    ("template", "kept"),
    [
        (LOOP + PARTS + "{% endfor %}" + ASK, 0),  # picture first, the question right behind it
        (LOOP + "<image> USER: {{ m['content'][-1]['text'] }} {% endfor %}" + ASK, 17),
        ("<s> " + LOOP + "{{ m['content'][-1]['text'] }} <image> {% endfor %}" + ASK, 0),
        ("<s> a b " + LOOP + TURN + PARTS + "{% endfor %}" + ASK, 20),
    ],
)
def test_what_is_kept_follows_the_template_and_answers_do_not(
    identity: Runtime, model: Path, pictures: list[Path], tmp_path: Path, template: str, kept: int
) -> None:
    runtime = with_template(identity, model, template, tmp_path / "t")
    prefix = runtime.prefill_image(pictures[:1])
    assert prefix.rows == kept
    for seed in range(5):
        stream = prefix.generate(question(seed), max_new_tokens=4)
        text = "".join(stream)
        whole = runtime.answer(question(seed), pictures[:1], max_new_tokens=4)
        assert (stream.token_ids, text) == (whole.token_ids, whole.text)
        assert stream.figures.reused_rows == kept


def test_a_question_that_changes_the_tokens_before_the_picture_runs_in_full(
    identity: Runtime, model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """The probes share a beginning that this question does not."""
    template = (
        "<s> {{ 'yes' if 'red' in messages[0]['content'][-1]['text'] else 'no' }} "
        + LOOP + TURN + PARTS + "{% endfor %}" + ASK
    )  # fmt: skip
    runtime = with_template(identity, model, template, tmp_path / "t")
    prefix = runtime.prefill_image(pictures[:1])
    for asked, reused in (("is blue", prefix.rows), ("is red", 0)):
        stream = prefix.generate(asked, max_new_tokens=4)
        list(stream)
        assert stream.figures.reused_rows == reused
        whole = runtime.answer(asked, pictures[:1], max_new_tokens=4)
        assert stream.token_ids == whole.token_ids
        assert prefix.answer(asked, max_new_tokens=4).token_ids == whole.token_ids


@pytest.mark.parametrize(
    ("first", "second", "end"),
    [
        ([1, 9, 9, 5, 6], [1, 9, 9, 5, 7], 3),  # behind the picture, though one more is shared
        ([1, 9, 9, 5], [1, 9, 9, 6, 7], 3),
        ([1, 9, 9, 2, 9, 9, 5], [1, 9, 9, 2, 9, 9, 6], 6),  # behind the last picture
        ([9, 9, 5, 6], [9, 9, 5, 7], 3),  # no text in front: the shared token behind it
        ([9, 9, 5], [9, 9, 6], None),  # no text in front and none behind
        ([9, 9], [9, 9], None),
        ([1, 5, 9, 9, 3], [1, 6, 9, 9, 3], None),  # the question stands before the picture
        ([1, 9, 9, 5, 9, 9], [1, 9, 9, 6, 9, 9], None),  # or between two
        ([1, 9, 9], [1, 9, 9, 4], 3),
    ],
)
def test_the_shared_rows_end_right_behind_the_last_picture(
    first: list[int], second: list[int], end: int | None
) -> None:
    assert shared_end([tuple(first), tuple(second)], image_token_id=9) == end


def test_keeping_no_picture_is_refused(identity: Runtime) -> None:
    with pytest.raises(DataError, match="no picture"):
        identity.prefill_image([])


def test_sampling_follows_its_seed_and_temperature_0_is_greedy(
    identity: Runtime, pictures: list[Path]
) -> None:
    def said(**options: Any) -> str:
        return "".join(identity.generate("what is", pictures[:1], max_new_tokens=12, **options))

    greedy = identity.answer("what is", pictures[:1], max_new_tokens=12).text
    assert said() == said(temperature=0.0, seed=5) == said(temperature=2.0, top_p=1e-9) == greedy
    assert said(temperature=5.0, seed=1) == said(temperature=5.0, seed=1)
    assert len({said(temperature=5.0, seed=seed) for seed in range(5)}) > 2
    with pytest.raises(DataError, match="top_p"):
        identity.generate("what is", top_p=2.0)


def test_figures_count_rows_tokens_and_bytes(identity: Runtime, pictures: list[Path]) -> None:
    answer = identity.generate("what is this", pictures[:2], max_new_tokens=7)
    list(answer)
    figures, dims = answer.figures, identity.facts.decoder
    assert figures.tokens == len(answer.token_ids) == 7
    assert figures.prompt_rows == identity.prepare("what is this", pictures[:2]).layout.rows
    rows = figures.prompt_rows + figures.tokens - 1
    assert figures.kv_bytes == dims.layers * 2 * dims.kv_width * rows * 4
    assert figures.first_token_s > 0
    assert figures.tokens_per_s is not None
    assert figures.tokens_per_s > 0


class Transformers:
    """The unmodified model behind its own processor, chat template and `generate`."""

    def __init__(self, folder: Path) -> None:
        self.model = load(str(folder))

    def reply(
        self, messages: Any, images: list[Path], max_new_tokens: int
    ) -> tuple[list[int], str]:
        left = [load_image(path) for path in images]
        turns = [
            {
                "role": m["role"],
                "content": [
                    {"type": "image", "image": left.pop(0)} if part["type"] == "image" else part
                    for part in m["content"]
                ],
            }
            for m in messages
        ]
        encoded = self.model.native_processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            out = self.model.original.generate(
                **encoded, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0
            )
        tokens = out[0, encoded["input_ids"].shape[1] :].tolist()
        return tokens, self.model.processor.decode(tokens, skip_special_tokens=True)


@pytest.fixture(scope="module")
def original(model: Path) -> Transformers:
    return Transformers(model)


@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_answers_to_a_hundred_questions_are_those_of_transformers_generate(
    identity: Runtime, original: Transformers, pictures: list[Path], images: int
) -> None:
    """25 questions without picture, and with one, two and three."""
    answers = set()
    for seed in range(25):
        asked = question(1000 * images + seed)
        chosen = [pictures[(seed + i) % 4] for i in range(images)]
        answer = identity.generate(asked, chosen, max_new_tokens=6)
        text = "".join(answer)
        content = [*[{"type": "image"}] * images, {"type": "text", "text": asked}]
        tokens, said = original.reply([{"role": "user", "content": content}], chosen, 6)
        assert list(answer.token_ids) == tokens
        assert text == said
        answers.add(text)
    assert len(answers) > 8, "all answers alike: nothing was compared"


def test_answers_of_several_turns_are_those_of_transformers_generate(
    identity: Runtime, original: Transformers, pictures: list[Path]
) -> None:
    reused = 0
    for seed, turns in enumerate(([1, 0, 2], [0, 1, 0], [2, 0, 0], [1, 1, 1])):
        conversation, seen = identity.chat(), []
        for turn, count in enumerate(turns):
            new = [pictures[(seed + turn + i) % 4] for i in range(count)]
            seen += new
            answer = conversation.ask(question(50 * seed + turn), new, max_new_tokens=5)
            text = "".join(answer)
            tokens, said = original.reply(conversation.messages[:-1], seen, 5)
            assert list(answer.token_ids) == tokens
            assert text == said
            reused += answer.figures.reused_rows > 0
    assert reused >= 4


@pytest.mark.parametrize("asked", [0, -1])
def test_no_answer_is_asked_for_without_a_token(identity: Runtime, asked: int) -> None:
    words = f"^max_new_tokens: {asked} is not allowed; a whole number, 1 or more$"
    for ask in (identity.answer, identity.generate, identity.chat().ask):
        with pytest.raises(DataError, match=words):
            list(ask("b", max_new_tokens=asked))
