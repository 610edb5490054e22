"""Qwen3-VL goes through the cases of every family: inner layers of its tower give rows to the decoder."""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vtcompress
from compressor.arrangement import Arrangement
from compressor.compressed import compress, plain
from compressor.decoder import decoder_from
from compressor.decoder.full_pass import full_pass, kl_divergence
from compressor.errors import ModelError
from compressor.families import describe
from compressor.families.qwen_vl.qwen3 import Qwen3VlFamily
from compressor.methods.shortv import layer_contribution
from compressor.plan.edits import freeze, identity_plan, leave
from compressor.plan.plan import Plan
from compressor.samples.layout import VisualRows
from compressor.samples.prompts import EncodedPrompt, embed, encode_question
from compressor.samples.questions import Sample
from export.backends.tensorrt.maker import Maker
from export.backends.tensorrt.targets import TARGETS
from export.backends.torch_model import TorchSession
from export.checks.fidelity import compare as compare_calls
from export.checks.fidelity import record
from export.checks.original import read_original
from export.checks.rewrite import compare
from export.graphs.limits import limits_of
from export.graphs.profiles import profiles_of
from export.graphs.spec import vision_graph
from export.results.fidelity import FidelityLimits
from export.session.arrays import Array
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests.decoders import write_decoder
from tests.family_cases import NEW_TOKENS, TOLERANCE, FamilyCases, Made
from tests.hooked import SequenceRows, hooked
from tests.test_family_qwen2_vl import maker, whole
from tests.tiny_families import LAYERS, TinyFamily

TURNED = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_interleaved": True,
    "mrope_section": [4, 2, 2],
}
QUESTION = "what is it"
DEEP = 3


def read(made: Made, pictures: Sequence[Image.Image] | None = None) -> EncodedPrompt:
    """Return a prompt with pictures, both unless others are given, as the model's own processor reads it."""
    loaded, seen = made.loaded, made.pictures if pictures is None else [*pictures]
    return encode_question(loaded.processor, QUESTION, seen, "here", loaded.facts)


def last_logits(made: Made, plan: Plan, prompt: EncodedPrompt) -> np.ndarray:
    """Return the logits at the prompt's end of the unmodified model with a plan's hooks."""
    ids = prompt.input_ids
    rows = SequenceRows((ids[0] == plan.model.image_token_id).numpy(), None)
    made.loaded.original.model.rope_deltas = None
    with torch.inference_mode(), hooked(made.layers, plan, rows):
        out = made.loaded.original(input_ids=ids, **prompt.of_pictures)
    found: np.ndarray = out.logits[0, -1].numpy()
    return found


class TestQwen3Vl(FamilyCases):
    family = TinyFamily(
        "qwen3_vl",
        maker(
            "Qwen3VL",
            {
                "hidden_size": 32,
                "intermediate_size": 64,
                "out_hidden_size": 64,
                "num_position_embeddings": 36,
                # Not in order: the first merger is that of layer 3.
                "deepstack_visual_indexes": [3, 1, 2],
            },
            head_dim=16,
            rope_parameters=TURNED,
        ),
        grid=None,
        pixels=whole,
    )

    def test_the_contribution_of_a_layer_is_that_in_the_unmodified_model(self, made: Made) -> None:
        """A layer leaves visual rows as they come to it; what is added behind it stays."""
        plan = identity_plan(made.loaded.facts, made.loaded.digest)
        prompt = read(made)
        decoder = decoder_from(plan, made.loaded.tensors)
        assert decoder.deepstack == tuple(range(DEEP))
        found = layer_contribution(full_pass(decoder, *embed(made.loaded, prompt).call))
        whole = torch.from_numpy(last_logits(made, plan, prompt))
        wanted = [
            kl_divergence(torch.from_numpy(last_logits(made, frozen, prompt)), whole)
            for frozen in (freeze(plan, (i,), "shortv") for i in range(LAYERS))
        ]
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE / 10)
        assert min(wanted[:-1]) > 10 * TOLERANCE

    @pytest.mark.parametrize(("exit_layer", "read_by"), [(1, ()), (2, (0,)), (3, (0, 1))])
    def test_behind_an_exit_no_rows_are_added(
        self, made: Made, exit_layer: int, read_by: Sequence[int]
    ) -> None:
        plan = identity_plan(made.loaded.facts, made.loaded.digest)
        plan = freeze(leave(plan, exit_layer, "visual_exit"), (0,), "shortv")
        prompt = read(made)
        small = compress(made.loaded, plan)
        assert small.decoder.deepstack == read_by
        found = small.hidden_states(QUESTION, made.pictures).logits[0, -1]
        np.testing.assert_allclose(found, last_logits(made, plan, prompt), atol=TOLERANCE)

    def test_it_answers_in_torch_and_shows_what_layers_read(self, made: Made) -> None:
        small = compress(made.loaded, made.plan("frozen"))
        content: list[dict[str, Any]] = [{"type": "image", "image": p} for p in made.pictures]
        content.append({"type": "text", "text": QUESTION})
        wanted, _ = made.answered([{"role": "user", "content": content}], "frozen")
        answer = small.generate(QUESTION, made.pictures, max_new_tokens=NEW_TOKENS)
        assert list(answer.token_ids) == wanted
        one = made.pictures[:1]
        prompt = read(made, one)
        by_tokens = small.generate(prompt.input_ids, prompt.pixels[0], max_new_tokens=NEW_TOKENS)
        assert by_tokens == small.generate(QUESTION, one, max_new_tokens=NEW_TOKENS)
        states = small.hidden_states(QUESTION, made.pictures)
        added = embed(made.loaded, read(made)).deepstack
        for layer in (0, 2, 3):  # frozen
            behind = states.visual[layer] + (added[layer] if layer < DEEP else 0.0)
            assert torch.equal(states.visual[layer + 1], behind)

    def test_a_kept_picture_answers_as_a_new_one(self, made: Made) -> None:
        runtime, _ = made.runtime("all", "onnxruntime")
        kept = runtime.prefill_image(made.pictures)
        assert kept.rows > 0
        found, wanted = kept.answer(QUESTION), runtime.answer(QUESTION, made.pictures)
        assert found.token_ids == wanted.token_ids
        np.testing.assert_allclose(found.first_logits, wanted.first_logits, atol=TOLERANCE)

    def test_a_batch_gets_the_rows_of_each_of_its_pictures(self, made: Made) -> None:
        runtime, _ = made.runtime("all", "onnxruntime")
        one, other = made.pictures
        asked = [(QUESTION, [one]), (QUESTION, [one.transpose(0)]), (QUESTION, [other])]
        together = dict(runtime.answers(asked, max_new_tokens=4))
        for place, (question, pictures) in enumerate(asked):
            alone = runtime.answer(question, pictures, max_new_tokens=4)
            assert together[place].token_ids == alone.token_ids
            difference = np.abs(together[place].first_logits - alone.first_logits).max()
            assert difference <= TOLERANCE

    def test_the_rewrite_check_sees_rows_of_another_layer(self, made: Made, tmp_path: Path) -> None:
        made.pictures[0].save(tmp_path / "one.png")
        sample = Sample((tmp_path / "one.png",), QUESTION)
        other = copy.deepcopy(made.loaded.vision)
        other.inner = other.inner[::-1]
        runtime, _ = made.in_torch(plain(replace(made.loaded, vision=other)))
        report = compare(read_original(made.loaded, sample), runtime, sample, "validation data")
        assert [line.partition(" differ")[0] for line in report.failures] == [
            "deepstack rows 0",
            "deepstack rows 2",
            "logits of the plain decoder",
        ]

    def test_fidelity_names_the_rows_that_a_graph_gives_wrongly(self, made: Made) -> None:
        class Wrong(TorchSession):
            def vision(
                self, pixel_values: Array, arrangement: Arrangement | None = None
            ) -> VisualRows:
                first, *others, last = super().vision(pixel_values, arrangement).features
                return VisualRows((first, *others, last * np.float32(1.01)))

        model = plain(made.loaded)
        right, wrong = (record(kind(model), model.plan) for kind in (TorchSession, Wrong))
        report = compare_calls(
            right, wrong, (), (), FidelityLimits(max_abs=1e-3, max_relative=1e-3, min_cosine=0.9999)
        )
        assert {line.partition(":")[0] for line in report.failures} >= {
            "deepstack 2, 1 images",
            "deepstack 2, 2 images",
        }
        assert not [line for line in report.failures if line.startswith(("vision", "deepstack 0"))]

    def test_reports_do_not_call_tokens_unchanged_that_rows_are_added_to(self, made: Made) -> None:
        report = (made.artifact("all") / "report.md").read_text(encoding="utf-8")
        assert (
            "Behind layers 0, 1, 2 rows of the vision tower are added to the visual tokens, frozen or not"
            in report
        )
        assert "The model turns a picture into up to " in report
        lines = [line for line in report.splitlines() if "pass through unchanged" in line]
        added = [
            "unchanged, and behind it rows of the vision tower are added" in line for line in lines
        ]
        assert [("ayer 1" in line, "ayer 3" in line) for line in lines] == [
            (True, False),
            (False, True),
        ]
        assert added == [True, False]

    @pytest.mark.parametrize(
        ("section", "changes", "told"),
        [
            ("vision_config", {"deepstack_visual_indexes": [1, 1]}, "different layers"),
            ("vision_config", {"deepstack_visual_indexes": [1, -1]}, "different layers"),
            (
                "vision_config",
                {"deepstack_visual_indexes": [1, 4]},
                r"\[4\] are not among the tower's 4",
            ),
            ("vision_config", {"num_position_embeddings": 35}, "35 is no square number"),
            ("vision_config", {"patch_size": [4, 4]}, r"patch_size: \[4, 4\] is not allowed"),
            (
                "text_config",
                {"rope_parameters": {**TURNED, "mrope_section": [4, 2, 1]}},
                r"mrope_section: \[4, 2, 1\] is not allowed",
            ),
        ],
    )
    def test_what_no_tower_or_decoder_has_is_refused_by_its_key(
        self, made: Made, tmp_path: Path, section: str, changes: dict[str, Any], told: str
    ) -> None:
        folder = Path(shutil.copytree(made.folder, tmp_path / "model"))
        config = json.loads((folder / "config.json").read_text())
        config[section] |= changes
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=rf"config\.json: {section}.*{told}"):
            describe(str(folder))


@pytest.mark.matrix
def test_tower_and_decoder_of_real_width_build_for_tensorrt_rtx(tmp_path: Path) -> None:
    """Qwen3-VL-2B, two layers of the tower and three of the decoder, float16, 1 to 1,280 visual tokens."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    from transformers import Qwen3VLConfig

    config = Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config={
            "num_hidden_layers": 3,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "vocab_size": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
            },
        },
    )
    family = Qwen3VlFamily()
    size = {"shortest_edge": 65536, "longest_edge": 1280 * 32**2}
    saved = {"image_processor_type": "Qwen2VLImageProcessor", "size": size}
    model = family.with_pictures(family.facts(config, "tiny", tied=True), saved)
    assert model.decoder.rope_axes is not None
    assert [model.decoder.rope_axes.count(axis) for axis in range(3)] == [24, 20, 20]
    torch.manual_seed(0)
    vision = family.vision(config, image_size=model.image_size).half()
    spec = vision_graph(model, "float16")
    with SharedWeights(tmp_path) as weights:
        graph = export_vision(SimpleNamespace(vision=vision), spec)
        save_graph(graph, tmp_path / spec.file, weights)
    limits = limits_of(vtcompress.load_recipe("identity").export.profiles, model)
    maker, engine = Maker.of(TARGETS["tensorrt-rtx"], ["SM86"]), tmp_path / "vision.engine"
    maker.build_engine(tmp_path / spec.file, profiles_of(spec, limits), spec, engine, b"")
    assert engine.stat().st_size > (tmp_path / "weights.bin").stat().st_size
    (tmp_path / "decoder").mkdir()
    plan = freeze(identity_plan(model, "0" * 64), (0,), "shortv")
    (spec,) = write_decoder(tmp_path / "decoder", plan)
    names = [tensor.name for tensor in spec.inputs if tensor.name.startswith("deepstack")]
    assert names == [tensor.name for tensor in vision_graph(model, "float16").outputs[1:]]
    maker.build_engine(
        tmp_path / "decoder" / spec.file, profiles_of(spec, limits), spec, engine, b""
    )
    assert engine.stat().st_size > (tmp_path / "decoder" / "weights.bin").stat().st_size
