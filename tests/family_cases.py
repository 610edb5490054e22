"""The cases that every family goes through, each against the unmodified model of transformers.

A file `tests/test_family_NAME.py` holds `class TestNAME(FamilyCases): family = TinyFamily(...)`, and what is
the family's own. Figures that differ from picture to picture come from the family's processor, never from one
number for all. There is one identity artifact of a family and one with all cuts, in which ONNX Runtime and
OpenVINO run. Each cut by itself runs in torch; gates, and each cut in graphs, on the model's first layers
(`tests.family_shorts`), whose decoder alone is exported. Cases tell the fixture `shows` what they are about;
the last one holds docs/families.md to what was shown.
"""

import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vtcompress
from compressor.compressed import CompressedModel, compress, load_compressed, save_compressed
from compressor.errors import ArtifactWarning, ModelError, PlanError, VtcompressError
from compressor.families import LoadedModel, describe, load
from compressor.families.folder import WEIGHTS
from compressor.families.known import family_that_read
from compressor.families.registry import read_processor
from compressor.plan.plan import Plan
from compressor.planner import check_methods, make_plan
from export.backends.torch_model import TorchSession
from export.runtime.runtime import Runtime
from export.runtime.sampling import AnswerOptions
from export.runtime.sequence import Prompt
from export.session.arrays import Array
from tests.conftest import Shows, made_once
from tests.family_matrix import (
    CHOICES,
    FACTS,
    GATED,
    GRAPHS_RUN,
    PAGE,
    RTX,
    TAKEN,
    TORCH,
    YES,
    judge,
    read_page,
    reason_of,
)
from tests.hooked import SequenceRows, hooked
from tests.runtimes import Spy, spied
from tests.tiny_families import HEADS, KV_HEADS, LAYERS, TinyFamily, changed_model, write_projector

if TYPE_CHECKING:
    from tests.family_shorts import Short

TOLERANCE = 1e-4
NEW_TOKENS = 16
MOST_NODES = 45
STEPS = 1 + 8  # the prompt's last row and eight decode steps
BACKENDS = (TORCH, *GRAPHS_RUN)

Part = str | int
"""A text, or the number of a picture."""
Turn = tuple[Part, ...]

MODES = ("RGB", "L", "RGBA")
# Not square, one wide and one high.
SIZES = ((45, 30), (28, 61))
CONVERSATIONS: dict[str, tuple[Turn, ...]] = {
    "one picture": ((0, "what is this"),),
    "two apart": (("look", 0, " then ", 1, "what is it"),),
    "two adjacent": ((0, 1, "what is it"),),
    "first and last but one": ((0, "what is in this and in that: ", 1),),
    "text alone": (("what is this",),),
    "a second turn with a new picture": ((0, "what is this"), (1, "and what is it")),
}

HEAD_MASK = np.ones((LAYERS, KV_HEADS), bool)
HEAD_MASK[1, 0] = HEAD_MASK[2, 1] = HEAD_MASK[3] = HEAD_MASK[5, 0] = False
HEAD_MASK = HEAD_MASK.repeat(HEADS // KV_HEADS, axis=1)

Entries = list[dict[str, Any]]


def cuts(mask: Path, grid: bool = True) -> dict[str, Entries]:
    """Return entries of a recipe by what they cut.

    Args:
        mask: the file of `HEAD_MASK`.
        grid: whether visual rows have one, which a window needs.
    """
    heads, window = {"heads": {"mask": mask}}, {"window": 3}
    return {
        "identity": [],
        "frozen": [{"shortv": {"layers": [0, 2, 3]}}],
        "exit": [{"visual_exit": {"layer": 4}}],
        "heads": [{"yopo": heads}],
        "neurons": [{"yopo": {"mlp_ratio": 3}}],
        "window": [{"yopo": window}],
        "all": [
            {"visual_exit": {"layer": 5}},
            {"yopo": {**heads, "mlp_ratio": 2, **(window if grid else {})}},
            {"shortv": {"layers": [1, 3]}},
        ],
    }


CUTS = tuple(cuts(Path()))[1:]


def random_picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Return a picture of noise, width and height as Pillow has them."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def odd_sizes(count: int, seed: int = 0, most: int = 200, least: int = 1) -> list[tuple[int, int]]:
    """Return sizes of pictures with edges from `least` to `most`, extreme ones first."""
    rng = np.random.default_rng(seed)
    drawn = [(int(w), int(h)) for w, h in rng.integers(1, most, (count, 2))]
    sizes = [(1, 1), (most, 3), (2, most), (33, 31), *drawn][:count]
    return [(max(w, least), max(h, least)) for w, h in sizes]


class Made:
    """A tiny family's folder, models, plans and runtimes, each made when it is asked for.

    Args:
        family: which.
        place: folder that all workers of a session share.
    """

    def __init__(self, family: TinyFamily, place: Path) -> None:
        self.family, self.place = family, place / family.name
        self.place.mkdir(parents=True, exist_ok=True)
        self.runtime: Callable[[str, str], tuple[Runtime, Spy]] = cache(self._runtime)
        self.answer: Callable[[str, str], tuple[list[int], np.ndarray]] = cache(self._answer)
        self.plan: Callable[[str], Plan] = cache(self._plan)

    @cached_property
    def folder(self) -> Path:
        return made_once(self.place / "model" / f"tiny-{self.family.name}", self.family.make)

    @cached_property
    def loaded(self) -> LoadedModel:
        from transformers import GenerationConfig

        found = load(str(self.folder), budget=self.family.image)
        # A family loads the weights alone.
        found.original.generation_config = GenerationConfig.from_pretrained(self.folder)
        return found

    @cached_property
    def layers(self) -> Any:
        found = self.loaded.original
        for name in self.family.layers.split("."):
            found = getattr(found, name)
        return found

    @cached_property
    def pictures(self) -> list[Image.Image]:
        return [random_picture(size, seed) for seed, size in enumerate(SIZES)]

    def entries(self, cut: str) -> Entries:
        file = self.place / "heads.npy"
        if not file.exists():
            np.save(file, HEAD_MASK)
        return cuts(file, self.family.grid is not None)[cut]

    def recipe(self, cut: str) -> vtcompress.Recipe:
        return vtcompress.load_recipe("identity").override(
            {
                "model.id": str(self.folder),
                "compress": self.entries(cut),
                "image": self.family.image.model_dump(),
            }
        )

    def artifact(self, cut: str) -> Path:
        def export(half: Path) -> None:
            manifest = vtcompress.export(self.recipe(cut), half, bench_rounds=0)
            assert manifest.fidelity is not None
            assert manifest.fidelity.passed, manifest.fidelity.failures

        # Files of tests share the place, and may call two recipes by one name.
        asked = json.dumps(self.entries(cut), sort_keys=True, default=str)
        return made_once(self.place / f"{cut} {zlib.crc32(asked.encode()):x}", export)

    def _plan(self, cut: str) -> Plan:
        facts, methods = self.loaded.facts, self.recipe(cut).methods
        return make_plan(facts, self.loaded.digest, methods, None)

    def _runtime(self, cut: str, backend: str) -> tuple[Runtime, Spy]:
        if backend != "torch":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ArtifactWarning)
                return spied(Runtime.load(self.artifact(cut), backend=backend, threads=1))
        return self.in_torch(compress(self.loaded, self.plan(cut)))

    def in_torch(self, model: CompressedModel) -> tuple[Runtime, Spy]:
        folder = self.artifact("identity")
        kept = vtcompress.Artifact.open(folder).manifest
        return spied(Runtime.on_session(TorchSession(model), folder, kept.model, kept.picture_form))

    def hooked_plan(self, name: str, cut: str) -> Plan:
        """Return what hooks do to the unmodified model in a conversation."""
        del name
        return self.plan(cut)

    def _answer(self, name: str, cut: str) -> tuple[list[int], np.ndarray]:
        """Return what the unmodified model answers in the last turn of a conversation; see `answered`."""
        messages: list[dict[str, Any]] = []
        plan = None if cut == "identity" else self.hooked_plan(name, cut)
        for turn in CONVERSATIONS[name]:
            messages.append(self._asked(turn))
            tokens, logits = self.hooked_answer(messages, plan)
            text = self.loaded.processor.decode(tokens)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        return tokens, logits

    def _asked(self, turn: Turn) -> dict[str, Any]:
        return {"role": "user", "content": [self._part(part) for part in turn]}

    @property
    def routers(self) -> Mapping[int, torch.Tensor]:
        """Routers [outputs, D] of layers that some visual rows run alone."""
        return {}

    def inputs(self, messages: Sequence[dict[str, Any]]) -> Any:
        """Return what the unmodified model's processor makes of a conversation."""
        return self.loaded.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )

    def _part(self, part: Part) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "image", "image": self.pictures[part]}

    def answered(
        self, messages: list[dict[str, Any]], cut: str = "identity"
    ) -> tuple[list[int], np.ndarray]:
        """Return the greedy tokens of the unmodified model and the logits that each was picked from."""
        return self.hooked_answer(messages, None if cut == "identity" else self.plan(cut))

    def hooked_answer(
        self, messages: list[dict[str, Any]], plan: Plan | None
    ) -> tuple[list[int], np.ndarray]:
        """Return what `answered` does, with hooks that do what a plan says; None: without hooks."""
        inputs = self.inputs(messages)
        ids = inputs["input_ids"]
        visual = (ids[0] == self.loaded.facts.image_token_id).numpy()
        around: AbstractContextManager[None] = nullcontext()
        if plan is not None:
            rows = SequenceRows(visual, self.family.grid)
            around = hooked(self.layers, plan, rows, self.routers)
        with torch.inference_mode(), around:
            made = self.loaded.original.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = made.sequences[0, ids.shape[1] :].tolist()
        return tokens, torch.cat(made.logits).numpy()


def pixels_of(runtime: Runtime, pictures: Sequence[Image.Image]) -> Array:
    """Return what the runtime gives its vision graph."""
    return np.concatenate([picture.pixels for picture in runtime.look(pictures)])


def read_by(processor: Any, picture: Image.Image) -> Any:
    """Return what the model's own processor makes of a picture, its class's own options and all."""
    return processor(images=[picture], text=[processor.image_token], return_tensors="np")


def prompt_of(runtime: Runtime, turn: Turn, pictures: Sequence[Image.Image]) -> Prompt:
    """Return a prompt of the runtime with pictures anywhere in it."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in turn
    ]
    seen = runtime.look(pictures)
    ids = runtime.encode([{"role": "user", "content": content}], seen)
    return runtime.prompt_of(ids, seen)


def ask(made: Made, runtime: Runtime, spy: Spy, name: str) -> tuple[list[int], np.ndarray]:
    """Return the runtime's tokens in the last turn of a conversation, and the logits of each."""
    turns = CONVERSATIONS[name]
    if len(turns) > 1:
        chat = runtime.chat()
        for turn in turns:
            spy.clear()
            question = "".join(part for part in turn if isinstance(part, str))
            pictures = [made.pictures[part] for part in turn if isinstance(part, int)]
            list(answer := chat.ask(question, pictures, max_new_tokens=NEW_TOKENS))
        # What ran in the first turn does not run again, unless its picture is read otherwise now.
        assert (answer.figures.reused_rows > 0) != made.family.alone
        return list(answer.token_ids), np.stack(spy.logits)
    pictures = [made.pictures[part] for part in turns[0] if isinstance(part, int)]
    spy.clear()
    prompt = prompt_of(runtime, turns[0], pictures)
    (reply,) = runtime.replies([prompt], AnswerOptions(NEW_TOKENS))
    return list(reply.token_ids), np.stack(spy.logits)


class FamilyCases:
    """The cases of one family; its file says which."""

    family: ClassVar[TinyFamily]

    def compare(self, made: Made, name: str, cut: str, backend: str) -> None:
        if backend == "openvino":
            pytest.importorskip("openvino", reason="the extra openvino is not installed")
        self.compare_runtime(made, name, cut, *made.runtime(cut, backend))

    def compare_runtime(self, made: Made, name: str, cut: str, runtime: Runtime, spy: Spy) -> None:
        tokens, logits = ask(made, runtime, spy, name)
        wanted, wanted_logits = made.answer(name, cut)
        difference = np.abs(logits[:STEPS] - wanted_logits[:STEPS]).max()
        assert difference <= TOLERANCE, f"{name}: {difference}"
        assert tokens == wanted
        assert len(tokens) == NEW_TOKENS

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("name", CONVERSATIONS)
    def test_without_cuts_it_is_the_unmodified_model(
        self, made: Made, name: str, backend: str, shows: Shows
    ) -> None:
        shows("identity", backend)
        self.compare(made, name, "identity", backend)

    def test_its_facts_have_the_grid_that_windows_need(self, made: Made) -> None:
        facts = made.loaded.facts
        assert (facts.family, facts.token_grid) == (self.family.name, self.family.grid)
        assert bool(family_that_read(facts).no_grid) == (self.family.grid is None)

    def refusals(self, made: Made) -> dict[str, str]:
        """Return why a family's model does not take a choice among visual tokens; empty: it does."""
        found, model = {}, made.loaded.facts
        if model.token_grid is not None:  # of even sides, as most published models have them
            model = model.model_copy(update={"token_grid": (4, 4), "visual_tokens": 16})
        dims, tower = model.decoder, model.tower
        for name, keys in CHOICES.items():
            asked = dict(keys)
            if "routers" in asked:
                asked["routers"] = made.place / f"{name}.safetensors"
                router = torch.ones(asked.pop("outputs"), dims.hidden)
                names = (f"model.layers.{i}.router.weight" for i in range(dims.layers))
                save_file({one: router.clone() for one in names}, asked["routers"])
            if "weights" in asked:
                patches = 4 * (tower.patches if tower is not None else 1)
                asked["weights"] = write_projector(made.place, patches=patches)
            recipe = made.recipe("identity").override({"compress": [{name: asked}]})
            try:
                check_methods(model, recipe.methods)
            except PlanError as error:
                found[name] = error.problems[0]
            else:
                found[name] = ""
        return found

    def test_choices_that_its_model_takes(self, made: Made, shows: Shows) -> None:
        for name, refused in self.refusals(made).items():
            shows(name, FACTS, refused)

    def test_the_page_says_which_choices_its_model_takes(self, made: Made) -> None:
        row = [reason_of(line) if line else YES for line in self.refusals(made).values()]
        page = read_page(PAGE.read_text(encoding="utf-8"), TAKEN)
        assert page[self.family.name] == [[f"`{self.family.name}`", *row]]

    @pytest.mark.parametrize("cut", CUTS)
    @pytest.mark.parametrize("name", ["two apart", "a second turn with a new picture"])
    def test_each_cut_is_the_unmodified_model_with_hooks(
        self, made: Made, name: str, cut: str, shows: Shows
    ) -> None:
        if cut == "window" and self.family.grid is None:
            with pytest.raises(PlanError, match="window") as caught:
                made.plan(cut)
            for backend in (*BACKENDS, RTX):  # no plan, so nothing that any of them could run
                shows(cut, backend, str(caught.value))
            return
        shows(cut, TORCH)
        self.compare(made, name, cut, TORCH)

    @pytest.mark.matrix
    @pytest.mark.parametrize("backend", GRAPHS_RUN)
    @pytest.mark.parametrize("cut", [cut for cut in CUTS if cut != "all"])
    def test_each_cut_alone_is_in_the_graphs(
        self, short: "Short", cut: str, backend: str, shows: Shows
    ) -> None:
        if cut == "window" and self.family.grid is None:
            pytest.skip("refused in a plan, which is tested above")
        shows(cut, backend)
        for name in ("two apart", "a second turn with a new picture"):
            self.compare(short, name, cut, backend)

    @pytest.mark.matrix
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("cut", GATED)
    def test_gates_decide_as_they_do_on_the_unmodified_models_states(
        self, short: "Short", cut: str, backend: str, shows: Shows
    ) -> None:
        shows(cut, backend)
        fired = {name: short.fires(name) for name in ("one picture", "two apart", "text alone")}
        assert fired["one picture"] != fired["two apart"]
        for name in fired:
            self.compare(short, name, cut, backend)

    @pytest.mark.matrix
    @pytest.mark.parametrize("cut", ["identity", *CUTS, *GATED])
    def test_tensorrt_rtx_builds_decoder_and_tower_ahead_of_time(
        self, short: "Short", cut: str, shows: Shows
    ) -> None:
        """Of the widths of tiny models; real ones are built in tests of their own."""
        if cut == "window" and self.family.grid is None:
            pytest.skip("refused in a plan, which is tested above")
        if cut == "gates, dynamic":
            with pytest.raises(VtcompressError, match="exit: staged") as caught:
                short.build(cut)
            shows(cut, RTX, str(caught.value))
            return
        shows(cut, RTX)
        pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
        short.build(cut)
        if cut == "identity":
            short.build_tower()

    @pytest.mark.parametrize("backend", BACKENDS[1:])
    @pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name != "two apart"])
    def test_all_cuts_together_are_in_the_graphs(
        self, made: Made, name: str, backend: str, shows: Shows
    ) -> None:
        shows("all", backend)
        self.compare(made, name, "all", backend)

    def test_a_compressed_folder_is_the_same_model(self, made: Made, tmp_path: Path) -> None:
        save_compressed(made.loaded, made.plan("all"), tmp_path)
        runtime, spy = made.in_torch(load_compressed(tmp_path))
        self.compare_runtime(made, "two apart", "all", runtime, spy)

    def test_tensors_by_their_names_in_memory_are_read_as_well(
        self, made: Made, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(made.folder, tmp_path / made.folder.name))
        tensors = made.loaded.original.state_dict()
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
        assert describe(str(folder)) == describe(str(made.folder)) == made.loaded.facts
        found = load(str(folder)).original.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in tensors.items())

    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_its_known_answers_are_those_of_a_device_in_every_part(
        self, made: Made, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip(backend)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        artifact = made.artifact("identity")
        known = vtcompress.Artifact.open(artifact).manifest.selftest
        assert known is not None
        assert known.left_out == ()
        assert known.layers == made.loaded.facts.decoder.layers
        report = vtcompress.selftest(artifact, backend=backend, threads=1, locate=True)
        assert report.passed, report.failures
        assert report.located is not None
        assert report.located.line.startswith("states part nowhere")

    def test_a_decoder_layer_has_few_nodes(self, made: Made) -> None:
        graph = onnx.load(
            made.artifact("identity") / "decoder.onnx", load_external_data=False
        ).graph
        assert len(graph.node) <= MOST_NODES * made.loaded.facts.decoder.layers

    def test_every_cut_changes_the_logits(self, made: Made) -> None:
        """Guards the tests above: a cut that changed nothing would pass them."""
        names = [cut for cut in CUTS if cut != "window" or self.family.grid is not None]
        found = [made.answer("two apart", cut)[1][0] for cut in ("identity", *names)]
        for one in range(len(found)):
            for other in range(one):
                assert np.abs(found[one] - found[other]).max() > 100 * TOLERANCE

    def test_pictures_and_their_order_change_the_logits(self, made: Made) -> None:
        one, other = made.pictures
        found = []
        for pictures in ([one, other], [other, one], [one, one]):
            content = [{"type": "image", "image": picture} for picture in pictures]
            content.append({"type": "text", "text": "what is it"})
            found.append(made.answered([{"role": "user", "content": content}])[1][0])
        for first, second in ((0, 1), (0, 2), (1, 2)):
            assert np.abs(found[first] - found[second]).max() > 100 * TOLERANCE

    def test_pixels_are_the_processors_bit_for_bit(self, made: Made) -> None:
        runtime, _ = made.runtime("identity", "torch")
        for seed, size in enumerate(odd_sizes(200, seed=1, least=self.family.least)):
            picture = random_picture(size, seed).convert(MODES[seed % len(MODES)])
            wanted = read_by(made.loaded.processor, picture)
            assert np.array_equal(pixels_of(runtime, [picture]), self.family.pixels(wanted)), size

    def test_a_picture_has_as_many_tokens_as_the_processor_writes(self, made: Made) -> None:
        runtime, _ = made.runtime("identity", "torch")
        token = made.loaded.facts.image_token_id
        for seed, size in enumerate(odd_sizes(200, seed=2, least=self.family.least)):
            picture = random_picture(size, seed)
            wanted = read_by(made.loaded.processor, picture)
            ids = runtime.prepare("x", [picture]).ids
            assert ids.count(token) == (wanted["input_ids"] == token).sum(), size

    def test_from_a_picture_file_to_the_same_text(self, made: Made, tmp_path: Path) -> None:
        runtime, _ = made.runtime("identity", "onnxruntime")
        for seed, size in enumerate(odd_sizes(20, seed=3, least=self.family.least)):
            file = tmp_path / f"{seed}.png"
            random_picture(size, seed).save(file)
            with Image.open(file) as picture:
                content: list[dict[str, Any]] = [{"type": "image", "image": picture.convert("RGB")}]
            content.append({"type": "text", "text": "what is this"})
            tokens, _ = made.answered([{"role": "user", "content": content}])
            text = "".join(runtime.generate("what is this", file, max_new_tokens=NEW_TOKENS))
            assert text == made.loaded.processor.decode(tokens, skip_special_tokens=True), size
            assert len(text) == NEW_TOKENS

    @pytest.mark.parametrize(
        ("key", "value", "told"),
        [
            ("head_dim", 0, "text_config.head_dim: 0 is not allowed"),
            ("pad_token_id", 10**6, "text_config.pad_token_id: 1000000 cannot be used: "),
            ("", {"dtype": []}, "dtype: [] is not supported"),
            ("", {"image": None}, "{}: "),
        ],
    )
    def test_what_cannot_be_used_is_told_by_the_key_of_its_file(
        self, made: Made, tmp_path: Path, key: str, value: Any, told: str
    ) -> None:
        other = changed_model(
            made.folder, tmp_path / "m", **({"text_config": {key: value}} if key else {})
        )
        raw = json.loads((made.folder / "config.json").read_text())
        own = family_that_read(made.loaded.facts).image_id_key
        if not key:
            assert own in raw
            left = {k: v for k, v in raw.items() if k != own} if "image" in value else raw | value
            (other / "config.json").write_text(json.dumps(left))
        with pytest.raises(ModelError) as caught:
            read_processor(str(other))
        assert caught.value.problems[0].startswith(f"{other / 'config.json'}: {told.format(own)}")

    @pytest.mark.matrix
    def test_the_page_says_what_these_cases_showed(self, request: pytest.FixtureRequest) -> None:
        """Stands last in its class; cases that did not run leave cells that cannot be judged."""
        judge(request, self.family.name)
