"""A family of another package, defined here alone: from its model folder to an artifact that answers.

Its models are ViP-LLaVA's under a model type of its own: several layers of a tower, without the class token,
normalised and projected. Pictures go through a processor that this tool does not know, ViT's.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, VipLlavaConfig

import vtcompress
from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families import Family, VisionEncoder, known
from compressor.families.checkpoint import Header, check_complete, opened_weights
from compressor.families.llama_text import decoder_dims, text_problems
from compressor.families.pictures.steps import Normalise, PictureSteps, Rescale, Resize
from tests.models import PATCH, SIDE, VOCAB, WORDS, Variant, _processor, _text, _vision

LAYERS = [-1, -2]


class ToyConfig(VipLlavaConfig):
    model_type = "toy"


AutoConfig.register("toy", ToyConfig)


class ToyVision(VisionEncoder):
    def __init__(self, tower: Any, projector: Any, interpolate: bool) -> None:
        super().__init__()
        self.tower, self.projector, self.interpolate = tower, projector, interpolate

    def forward(self, pixel_values: Tensor) -> Tensor:
        states = self.tower(
            pixel_values, output_hidden_states=True, interpolate_pos_encoding=self.interpolate
        ).hidden_states
        features = [states[layer][:, 1:] for layer in LAYERS]
        return self.projector(torch.cat(features, dim=-1))


class ToyFamily(Family):
    name = "toy"
    model_types = ("toy",)

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        return text_problems(raw["text_config"], f"{where}: text_config")

    def facts(
        self, config: Any, name: str, *, where: str = "config.json",
        image_size: int | None = None, tied: bool | None = None,
    ) -> ModelFacts:  # fmt: skip
        vision = config.vision_config
        size = image_size or vision.image_size
        side = size // vision.patch_size
        return ModelFacts(
            name=name,
            family=self.name,
            architecture="VipLlavaForConditionalGeneration",
            decoder=decoder_dims(config.text_config, tied=bool(tied), where=where),
            visual_tokens=side**2,
            token_grid=(side, side),
            image_size=size,
            image_token_id=config.image_token_id,
            eos_token_ids=(),
            dtype="float32",
        )

    def check_stored(
        self, config: Any, folder: Path, stored: Mapping[str, Header], names: Iterable[str]
    ) -> None:
        pass

    def original(self, folder: Path, config: Any, dtype: Any) -> Any:
        from transformers import VipLlavaForConditionalGeneration

        with opened_weights(folder) as stored:
            loaded: Any = VipLlavaForConditionalGeneration.from_pretrained(
                None, config=config, state_dict=stored, dtype=dtype, output_loading_info=True
            )
        model, info = loaded
        check_complete(info, folder, lambda name: "post_layernorm" in name)
        return model.eval()

    def vision(self, config: Any, *, image_size: int, source: Any = None) -> VisionEncoder:
        if source is None:
            from transformers import VipLlavaForConditionalGeneration

            source = VipLlavaForConditionalGeneration(config)
        model, native = source.model, config.vision_config.image_size
        return ToyVision(
            model.vision_tower, model.multi_modal_projector, image_size != native
        ).eval()

    def tensors(self, original: Any) -> Mapping[str, Tensor]:
        language = original.model.language_model.state_dict()
        return language | {"lm_head.weight": original.lm_head.weight.detach()}

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        pass

    def picture_steps(self, saved: Mapping[str, Any], where: str) -> PictureSteps:
        if saved["image_processor_type"] != "ViTImageProcessor":
            raise ModelError(
                [f"{where}: image_processor_type: only ViTImageProcessor is supported"]
            )
        height, width = saved["size"]["height"], saved["size"]["width"]
        return (
            Resize(size=(height, width), resample="bilinear"),
            Rescale(factor=saved["rescale_factor"]),
            Normalise(mean=saved["image_mean"], std=saved["image_std"]),
        )

    def resize_processor(self, processor: Any, image_size: int) -> None:
        processor.image_processor.size = {"height": image_size, "width": image_size}


class Namesake(ToyFamily):
    name = "llava"


class Rival(ToyFamily):
    name = "rival"
    model_types = ("other", "llava")


class Unfinished(Family):
    name = "unfinished"
    model_types = ("unfinished",)


Register = Callable[..., None]


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """Return a function that installs a package whose entry points name classes of this file."""

    def install(*names: str, package: str = "toy-families") -> None:
        site = tmp_path / "site"
        info = site / f"{package.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n"
        (info / "METADATA").write_text(head)
        points = [f"{name.lower()} = {__name__}:{name}" for name in names]
        (info / "entry_points.txt").write_text("\n".join([f"[{known.GROUP}]", *points]) + "\n")
        monkeypatch.syspath_prepend(site)
        known.families.cache_clear()

    yield install
    known.families.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy") / "toy-model")


def make_toy(folder: Path) -> Path:
    """Write a tiny folder of the type whose pictures go through ViT's processor."""
    from transformers import VipLlavaForConditionalGeneration
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    variant = Variant(layers=2)
    config = ToyConfig(
        vision_config=_vision(variant),
        text_config=_text(variant),
        image_token_index=WORDS.index("<image>"),
        vision_feature_layer=LAYERS,
        tie_word_embeddings=False,
    )
    model = VipLlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config.eos_token_id = WORDS.index("</s>")
    model.save_pretrained(folder)
    processor = _processor(variant)
    processor.image_processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder)
    return folder


RUNS = """
import json, sys
sys.modules |= dict.fromkeys(("torch", "transformers"))
from export.runtime.runtime import Runtime
runtime = Runtime.load(sys.argv[1])
reply = runtime.answer("what is this", sys.argv[2], max_new_tokens=4)
print(json.dumps({"ids": reply.token_ids, "logits": reply.first_logits.tolist()}))
"""


def test_it_goes_from_its_model_folder_to_an_artifact_that_answers(
    folder: Path, questions: Path, register: Register, tmp_path: Path
) -> None:
    register("ToyFamily")
    recipe = vtcompress.load_recipe("shortv").override(
        {
            "model.id": str(folder),
            "compress": [{"shortv": {"layers": [0]}}],
            "validate.data": questions,
            "validate.max_new_tokens": 4,
            "validate.loss.min_exact_match_kept": None,
            "validate.loss.max_kl": 100.0,
        }
    )
    out = tmp_path / "out"
    manifest = vtcompress.export(recipe, out, bench_rounds=0)
    assert manifest.verdict.value == "passed"
    # The original and the uncut rewrite, which reads pictures by the steps, are the same model.
    assert manifest.rewrite is not None
    assert manifest.rewrite.pixels == 0
    half = (0.5, 0.5, 0.5)
    assert manifest.picture_steps == (
        Resize(size=(SIDE, SIDE), resample="bilinear"),
        Rescale(factor=1 / 255),
        Normalise(mean=half, std=half),
    )
    assert manifest.model.visual_tokens == (SIDE // PATCH) ** 2
    assert manifest.model.decoder.vocab == VOCAB
    # It is named as another package's.
    assert (manifest.model.family, manifest.model.family_package) == ("toy", "toy-families")
    for name in ("report.html", "report.md"):
        assert "toy-families (family toy)" in (out / name).read_text(encoding="utf-8")

    # The artifact needs neither the package nor torch.
    picture = questions.parent / "0.png"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNS, out, picture],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    reply = vtcompress.Runtime.load(out).answer("what is this", picture, max_new_tokens=4)
    assert answer["ids"] == list(reply.token_ids)
    assert answer["logits"] == reply.first_logits.tolist()

    # An artifact without steps is read by its processor's files, and this one is not known here.
    written = json.loads((out / "manifest.json").read_text())
    assert written.pop("picture_steps")
    (out / "manifest.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match="ViTImageProcessor is not supported"):
        vtcompress.Runtime.load(out)


def test_its_models_are_told_of_with_the_package(folder: Path, register: Register) -> None:
    own = known.supported()
    with pytest.raises(ModelError, match=f"'toy' is not supported; supported: {', '.join(own)}$"):
        vtcompress.inspect(folder)
    register("ToyFamily")
    found = vtcompress.inspect(folder)
    assert (found["family"], found["family_package"]) == ("toy", "toy-families")
    assert "problems" not in found
    assert known.supported() == (*own, "toy")


def test_own_families_are_of_no_package(tiny_model: Path, register: Register) -> None:
    register("ToyFamily")
    assert vtcompress.inspect(tiny_model)["family_package"] is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["Missing"],
            "cannot be loaded: AttributeError: module 'tests.test_toy_family' has no attr",
        ),
        (
            ["Unfinished"],
            "cannot be loaded: TypeError: Can't instantiate abstract class Unfinished",
        ),
        (["Path"], "is a PosixPath, not a Family"),
        (
            ["Namesake"],
            "its family 'llava' has the name 'llava', which the family 'llava' of vtcompress",
        ),
        (
            ["Rival"],
            "'rival' has the model_type 'llava', which the family 'llava' of vtcompress itself",
        ),
        (
            ["ToyFamily", "Rival", "Missing"],
            "tests.test_toy_family:Missing (entry point 'missing' of vt",
        ),
    ],
)
def test_a_broken_entry_point_and_a_clash_are_one_line(
    names: list[str], words: str, tiny_model: Path, register: Register, vt: Callable[..., Any]
) -> None:
    register(*names)
    code, _, err = vt("inspect", tiny_model)
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith("error: package toy-families: its family ")
    assert words in line
    assert line.endswith(("; remove or upgrade toy-families", "; remove toy-families"))


def test_two_packages_with_one_name_are_told_apart(register: Register) -> None:
    register("ToyFamily")
    register("ToyFamily", package="more-toys")
    with pytest.raises(ModelError) as caught:
        known.families()
    for what, line in zip(("name 'toy'", "model_type 'toy'"), caught.value.problems, strict=True):
        assert f"its family 'toy' has the {what}, which the family 'toy' of " in line
        assert {"toy-families", "more-toys"} <= set(line.split("remove ")[1].split(" or "))


def test_what_a_family_made_is_not_continued_without_it(
    folder: Path, register: Register, tmp_path: Path
) -> None:
    register("ToyFamily")
    facts = vtcompress.plan(
        vtcompress.load_recipe("identity").override({"model.id": str(folder)})
    ).model
    shutil.rmtree(tmp_path / "site")
    known.families.cache_clear()
    with pytest.raises(ModelError) as caught:
        known.family_that_read(facts)
    assert caught.value.problems == (
        "toy-model: its family 'toy' is not installed here: install toy-families",
    )


def test_own_families_come_from_a_list_of_places_alone() -> None:
    assert [type(family).__name__ for family in known.families()] == [
        EntryPoint("", value, known.GROUP).attr for value in known.BUILT_IN
    ]
