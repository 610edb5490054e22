"""Compression loss by layer: the figures of models in memory, with one layer's weights there at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtcompress
from compressor.compressed import compress
from compressor.disk.array_file import ArrayFile
from compressor.families import LoadedModel, load
from compressor.families.registry import picture_form
from compressor.families.stand_ins import StoredTensor, is_stand_in
from compressor.plan.edits import freeze, identity_plan, leave
from compressor.plan.plan import Plan
from compressor.progress import SILENT
from compressor.samples.questions import Sample, read_samples
from compressor.schema.sections import ExportSection
from export.artifact.artifact import Artifact
from export.artifact.manifest import shortcoming
from export.backends.torch_model import TorchSession
from export.checks import loss
from export.checks.by_layer import questions as asking
from export.checks.by_layer.forced import ForcedAnswer, answers_right, picked
from export.checks.by_layer.loss import pairs_by_layer
from export.checks.by_layer.reference import layers_as_stored
from export.checks.original import measure_original
from export.results.loss_report import LossLimits, LossReport
from export.results.verdict import Verdict
from export.runtime.runtime import Runtime
from tests import test_family_qwen3_vl
from tests.family_cases import HEAD_MASK, cuts
from tests.llava_7b import make_llava_7b
from tests.test_streaming import DIGITS, FROZEN, HELD_OUT, REPOSITORY, first_layers, recipe_of
from vtcompress.stages.compress import as_stored

Vt = Callable[..., tuple[int, str, str]]
FLOAT = ExportSection()


def in_memory(
    model: LoadedModel,
    plan: Plan,
    settings: ExportSection,
    samples: Sequence[Sample],
    longest: int,
    folder: Path,
) -> LossReport:
    """Measure with transformers' model and the compressed one in torch, answers generated."""
    small = as_stored(compress(model, plan), settings)
    small.processor.save_pretrained(folder)
    form = picture_form(small.processor, plan.model)
    runtime = Runtime.on_session(TorchSession(small), folder, plan.model, form)
    before = measure_original(model, samples, longest)
    after = loss.measure_answers(runtime, samples, longest)
    return loss.compare(samples, before, after, LossLimits(), "asked.jsonl")


def by_layer(
    folder: Path,
    plan: Plan,
    settings: ExportSection,
    samples: Sequence[Sample],
    longest: int,
    states: Path,
) -> LossReport:
    model = load(str(folder), outline=True)
    small = compress(model, plan)
    pairs = pairs_by_layer(model, small, settings, samples, longest, states, SILENT)
    assert not [*states.glob("states*")]
    return loss.judged(samples, pairs, LossLimits(), "asked.jsonl")


def assert_same_figures(found: LossReport, wanted: LossReport) -> None:
    for own, whole in zip(
        (found.overall, *found.kinds), (wanted.overall, *wanted.kinds), strict=True
    ):
        assert own.undecided == 0
        assert (own.kl, own.kl_worst) == pytest.approx((whole.kl, whole.kl_worst), abs=1e-6)
        unknown = {"common_prefix": None, "equal_answers": None, "undecided": 0}
        rest = {"kl": own.kl, "kl_worst": own.kl_worst, **unknown}
        assert own == whole.model_copy(update=rest)


def test_the_bundled_model_loses_what_it_loses_in_memory(tmp_path: Path) -> None:
    samples = [
        # Of several right answers one is enough.
        replace(sample, answer="none", others=(str(sample.answer), "9 9")) if i % 3 else sample
        for i, sample in enumerate(read_samples(HELD_OUT)[:9])
    ]
    model = load(str(DIGITS))
    plan = freeze(identity_plan(model.facts, model.digest), range(2, 12), "shortv")
    wanted = in_memory(model, plan, FLOAT, samples, 16, tmp_path)
    found = by_layer(DIGITS, plan, FLOAT, samples, 16, tmp_path)
    assert_same_figures(found, wanted)
    right = (wanted.overall.exact_match_original, wanted.overall.exact_match)
    assert 0 < (right[1] or 0) < (right[0] or 0) <= 1
    assert wanted.overall.kl > 0.01


@pytest.mark.parametrize("longest", [1, 4])
def test_right_answers_of_any_length_are_counted_cut_ones_too(
    longest: int, tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    model = load(str(tiny_model))
    plan = leave(identity_plan(model.facts, model.digest), 1, "visual_exit")
    asked = read_samples(questions)
    said = measure_original(model, asked, longest).answers
    # A random model ends hardly ever: what it is cut at is its answer.
    samples = [
        replace(sample, answer=answer.text if i % 2 else f"x {answer.text}", kind=f"{i % 2}")
        for i, (sample, answer) in enumerate(zip(asked, said, strict=True))
    ]
    found = by_layer(tiny_model, plan, FLOAT, samples, longest, tmp_path)
    assert_same_figures(found, in_memory(model, plan, FLOAT, samples, longest, tmp_path))
    assert found.overall.exact_match_original == 0.5


def test_rows_added_behind_layers_three_axes_and_all_cuts(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "mask.npy", HEAD_MASK)
    test_family_qwen3_vl.TestQwen3Vl.family.make(tmp_path / "model")
    entries = cuts(tmp_path / "mask.npy", grid=False)["all"]
    plan = vtcompress.plan(recipe_of(tmp_path / "model", entries))
    model = load(str(tmp_path / "model"))
    samples = [replace(s, answer=None, others=()) for s in read_samples(questions)[:3]]
    found = by_layer(tmp_path / "model", plan, FLOAT, samples, 4, tmp_path)
    assert_same_figures(found, in_memory(model, plan, FLOAT, samples, 4, tmp_path))
    # What a random model says is spelled in no tokens but its own: these are forced.
    small = compress(model, plan)
    said = [small.generate(s.question, s.images, max_new_tokens=4, generation_config=False)
            for s in samples]  # fmt: skip
    by_text = {answer.text: answer.token_ids for answer in said}
    monkeypatch.setattr(asking, "answer_ids", lambda _, sample, __: by_text[sample.answer])
    streamed = compress(load(str(tmp_path / "model"), outline=True), plan)
    layers, logits = layers_as_stored(streamed, FLOAT), ArrayFile(tmp_path / "logits")
    asked = [replace(s, answer=answer.text) for s, answer in zip(samples, said, strict=True)]
    all_ = asking.AllQuestions(streamed, layers, 4, tmp_path / "states", logits)
    assert [heard.right for heard in all_.ask(asked, SILENT, "compressed")] == [True] * 3


def test_whole_numbers_are_what_the_artifact_holds(tmp_path: Path) -> None:
    folder = first_layers(tmp_path / "model", 2)
    model, samples = load(str(folder)), read_samples(HELD_OUT)[:3]
    settings = ExportSection(weights="int4", block=32)
    plan = identity_plan(model.facts, model.digest)
    found = by_layer(folder, plan, settings, samples, 4, tmp_path)
    assert_same_figures(found, in_memory(model, plan, settings, samples, 4, tmp_path))
    assert found.overall.kl > 1e-4


def test_one_layer_is_in_memory_at_a_time_and_read_once_for_all_questions(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, held, seen = StoredTensor.read, asking.ByLayer.run, []
    reads: dict[str, int] = {}

    def counted(self: StoredTensor) -> Any:
        reads[self.name] = reads.get(self.name, 0) + 1
        return read(self)

    def run(self: Any, layer: int, *calls: Any) -> None:
        names = {n.split(".")[1] for n, p in self.decoder.named_parameters()
                 if n.startswith("layers.") and p.ndim > 1 and not is_stand_in(p)}  # fmt: skip
        seen.append((str(layer), names))
        held(self, layer, *calls)

    monkeypatch.setattr(StoredTensor, "read", counted)
    monkeypatch.setattr(asking.ByLayer, "run", run)
    samples = [replace(s, answer="a b") for s in read_samples(questions)[:3]]
    model = load(str(tiny_model), outline=True)
    small = compress(model, identity_plan(model.facts, model.digest))
    reads.clear()
    pairs_by_layer(model, small, FLOAT, samples, 4, tmp_path, SILENT)
    assert len(seen) == 2 * 2 * 3 * 2  # models, layers, questions, a prompt and an answer
    assert all(names == {layer} for layer, names in seen)
    assert set(reads.values()) == {2}


def spelled(tokens: Sequence[int]) -> str:
    return "".join("\u00e4bc\n\ufffd"[token] for token in tokens if token < 5)


END = 9


@pytest.mark.parametrize(
    ("picks", "right"),
    [
        ([(0, 1, END)], True),  # the answer and its end
        ([(0, 1, 2)], None),  # "\u00e4bc": begins as "\u00e4bc?" does
        ([(0, 1, 3)], None),  # white space, and perhaps the end
        ([(0, END, END)], False),
        ([(1, 0, END)], False),
        ([(4, 1, END)], None),  # a byte of a character
        ([(2, 0, END)], False),
    ],
)
def test_what_is_known_of_an_answer_decides(picks: Any, right: bool | None) -> None:
    forced = [ForcedAnswer((0, 1, END), one) for one in picks]
    assert answers_right(forced, ("\u00e4b", "\u00e4bc?"), (END,), 8, spelled) is right


def test_an_answer_is_known_as_far_as_a_forced_one_was_followed() -> None:
    forced = ForcedAnswer((0, 1, END), (0, 2, END))
    assert picked(forced, (END,), 8) == ((0, 2), False)
    assert picked(forced, (END,), 2) == ((0, 2), True)
    assert picked(forced._replace(likeliest=(0, 1, END)), (END,), 8) == ((0, 1, END), True)


def test_the_longest_known_beginning_counts_among_several_right_answers() -> None:
    forced = [ForcedAnswer((1, END), (0, END)), ForcedAnswer((0, 0, END), (0, 1, END))]
    assert answers_right(forced, ("b", "\u00e4\u00e4"), (END,), 8, spelled) is False
    ended = [ForcedAnswer((1, END), (0, END)), ForcedAnswer((0, END), (0, END))]
    assert answers_right(ended, ("b", "\u00e4"), (END,), 8, spelled) is True


def pairs(*scores: tuple[float, float] | None) -> list[loss.Pair]:
    return [loss.Pair(kl=0.1, agrees=True, scores=one) for one in scores]


def test_limits_on_what_was_not_measured_are_not_passed() -> None:
    samples = [Sample((HELD_OUT,), "?", "1") for _ in range(3)]
    limits = LossLimits(max_kl=1, min_common_prefix=0.5, min_exact_match_kept=0.9)
    found = loss.judged(samples, pairs((1, 1), None, (1, 1)), limits, "d.jsonl")
    assert found.verdict is Verdict.NOT_JUDGED
    assert found.not_judged == ("min_common_prefix: answers were not generated",)
    assert (found.overall.answered, found.overall.undecided) == (2, 1)
    judged = loss.judged(samples, pairs(None, None, None), limits, "d.jsonl")
    assert "min_exact_match_kept" in judged.measures[1].key
    assert "no answer could be told right or wrong" in judged.measures[1].in_place


def test_a_streamed_export_measures_judges_and_says_how(
    tiny_model: Path, questions: Path, tmp_path: Path, vt: Vt
) -> None:
    out = tmp_path / "out"
    limits = ("--set", "validate.loss.max_kl=0", "--set", "validate.loss.min_common_prefix=0.1")
    given = ("--recipe", "shortv", "--set", "compress.shortv.layers=[0]", "--model", tiny_model,
             "--validate-data", questions, *limits)  # fmt: skip
    code, said, err = vt("export", *given, "--output", out, "--stream")
    assert code == 3, err
    assert "compression loss is measured by layer, right answers forced" in err
    manifest = Artifact.open(out).manifest
    assert manifest.loss is not None
    assert manifest.loss.by_layer == "float"
    if sys.platform == "linux":
        assert "measuring compression loss" in (manifest.peak_memory_by_stage or {})
    assert manifest.loss.verdict is Verdict.FAILED
    assert manifest.verdict is Verdict.FAILED
    kept = manifest.loss.model_copy(update={"failures": (), "limits": LossLimits(max_kl=1)})
    passed = manifest.model_copy(update={"loss": kept})
    assert (kept.verdict, passed.verdict) == (Verdict.PASSED, Verdict.NOT_RUN)
    uncompared = "comparison of the rewritten model with the original: not run"
    assert uncompared in str(shortcoming(passed))
    report = (out / "report.md").read_text(encoding="utf-8")
    for text in (report, said):
        assert "By layer: both models ran all questions in torch" in text
        assert "Answers were not generated: right ones were forced" in text
        assert "no compression loss" not in text
    assert "None: answers were not generated." in report
    stored = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["loss"]
    assert stored["overall"]["common_prefix"] is None
    assert not [*out.glob("states*")]
    assert not (out / "validation").exists()
    _, said, _ = vt("validate", out)
    assert "it was measured by layer, and the artifact holds no answers" in said


def test_a_run_that_stops_leaves_no_states(
    tiny_model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Iterator[None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(asking.AllQuestions, "_through", stopped)
    recipe = recipe_of(tiny_model, FROZEN).override({"validate.data": questions})
    with pytest.raises(KeyboardInterrupt):
        vtcompress.export(recipe, tmp_path / "out", stream=True)
    assert not [*tmp_path.iterdir()]


def test_arrays_come_back_from_the_file_that_they_lie_in(tmp_path: Path) -> None:
    file = ArrayFile(tmp_path / "arrays")
    arrays = [np.arange(n, dtype=np.float32).reshape(1, n) for n in (3, 0, 5)]
    slots = [file.add(array) for array in arrays]
    file.write(slots[0], arrays[0] + 1)
    found = [file.read(slot) for slot in slots]
    assert [one.tolist() for one in found] == [[[1, 2, 3]], [[]], [[0, 1, 2, 3, 4]]]
    with pytest.raises(ValueError, match="in the place of"):
        file.write(slots[0], arrays[2])


CHILD = """
import sys
from pathlib import Path
from compressor.compressed import compress
from compressor.families import load
from compressor.plan.edits import identity_plan
from compressor.progress import SILENT
from compressor.samples.questions import read_samples
from compressor.schema.sections import ExportSection
from export.checks.by_layer.loss import pairs_by_layer
model, samples = load(sys.argv[1], outline=True), read_samples(Path(sys.argv[2]))[:2]
small = compress(model, identity_plan(model.facts, model.digest))
pairs_by_layer(model, small, ExportSection(), samples, 4, Path(sys.argv[1]), SILENT)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    """Six more layers of width 512 are 77 MB in float32."""
    children, sizes = {}, {}
    for layers in (2, 8):
        text = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 4,
                "num_hidden_layers": layers}  # fmt: skip
        vision = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
        model = make_llava_7b(tmp_path / f"{layers}", text=text, vision=vision)
        sizes[layers] = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        command = [sys.executable, "-c", CHILD, str(model), str(HELD_OUT)]
        # See the test of the whole export.
        environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
        children[layers] = subprocess.Popen(
            command, cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE
        )
    peaks = {layers: int(child.communicate(timeout=600)[0]) for layers, child in children.items()}
    assert 2 * (sizes[8] - sizes[2]) > 70e6  # the files have float16
    assert peaks[8] - peaks[2] < 15e6, peaks
