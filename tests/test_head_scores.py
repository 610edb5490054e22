"""What calibration measures for YOPO: head scores and neuron activity, against transformers' own model."""

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.calibration.plot import draw_profile
from compressor.calibration.run import calibrate
from compressor.decoder import decoder_from
from compressor.decoder.full_pass import FullPass, full_pass
from compressor.errors import ProfileError
from compressor.families import LoadedModel, load
from compressor.methods.yopo.heads import head_score
from compressor.methods.yopo.keys import HeadKeys
from compressor.methods.yopo.method import Yopo
from compressor.methods.yopo.neurons import neuron_activity
from compressor.plan.edits import identity_plan
from compressor.planner import make_plan
from compressor.profile import Profile, SampleScore
from compressor.samples.prompts import embed, encode
from compressor.samples.questions import Sample, read_samples
from tests import facts
from tests.facts import task
from tests.models import VARIANTS

YOPO = ("head_score", "neuron_activity")


@pytest.fixture(scope="module", params=sorted(VARIANTS))
def model(request: pytest.FixtureRequest, llava: Callable[[str], Path]) -> LoadedModel:
    return load(str(llava(request.param)))


@pytest.fixture(scope="module")
def one_model(llava: Callable[[str], Path]) -> LoadedModel:
    return load(str(llava("clip+llama")))


@pytest.fixture(scope="module")
def samples(questions: Path) -> tuple[Sample, ...]:
    return read_samples(questions)


def full_pass_of(model: LoadedModel, sample: Sample) -> FullPass:
    rows = embed(model, encode(model.processor, sample, model.facts))
    decoder = decoder_from(identity_plan(model.facts, model.digest), model.tensors)
    return full_pass(
        decoder, rows.visual_embeds, rows.text_embeds, rows.visual_index, rows.text_index
    )


def ratios_of_transformers(model: LoadedModel, sample: Sample) -> np.ndarray:
    """Scores from the attention maps [H, S, S] that transformers gives out, [L, H]."""
    prompt = encode(model.processor, sample, model.facts)
    visual = (prompt.input_ids[0] == model.facts.image_token_id).numpy()
    model.original.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model.original(
            input_ids=prompt.input_ids,
            pixel_values=prompt.inputs["pixel_values"],
            output_attentions=True,
        )
    maps = torch.stack(out.attentions)[:, 0].double().numpy()
    from_text = maps[:, :, ~visual]
    return from_text[..., visual].sum((2, 3)) / from_text[..., ~visual].sum((2, 3))


def test_head_scores_are_those_of_transformers_own_attention_maps(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    for sample in samples[:2]:
        found = head_score(full_pass_of(model, sample)).numpy()
        wanted = ratios_of_transformers(model, sample)
        assert wanted.shape == (model.facts.decoder.layers, model.facts.decoder.heads)
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
        assert wanted.std() > 0.01, "all heads are alike: the test would say little"


def test_neuron_activity_is_what_goes_into_the_last_projection_of_transformers_mlp(
    model: LoadedModel, samples: tuple[Sample, ...]
) -> None:
    prompt = encode(model.processor, samples[0], model.facts)
    visual = prompt.input_ids[0] == model.facts.image_token_id
    wanted: list[np.ndarray] = []

    def look(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        wanted.append(inputs[0][0, visual].abs().double().mean(0).numpy())

    layers = model.original.model.language_model.layers
    handles = [layer.mlp.down_proj.register_forward_pre_hook(look) for layer in layers]
    with torch.inference_mode():
        model.original(input_ids=prompt.input_ids, pixel_values=prompt.inputs["pixel_values"])
    for handle in handles:
        handle.remove()
    found = neuron_activity(full_pass_of(model, samples[0])).numpy()
    np.testing.assert_allclose(found[:-1], wanted[:-1], rtol=1e-4)
    assert not found[-1].any(), "visual rows of the last layer have no MLP"


class Memory(TorchDispatchMode):
    """Counts the numbers of the largest tensor that is made, and of all that live at a time (views too)."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.alive = self.peak = 0

    def _gone(self, numbers: int) -> None:
        self.alive -= numbers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                self.alive += tensor.numel()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(tensor, self._gone, tensor.numel())
        return made


def test_head_scores_keep_no_more_than_one_layers_attention() -> None:
    # Many tokens in small heads, so that attention maps are what is large.
    visual, text, heads = 600, 40, 8
    one_layer = heads * text * (visual + text)
    peaks = {}
    for layers in (2, 6):
        shape = facts.dims(layers=layers, hidden=16, heads=heads, kv_heads=4, head_dim=2)
        plan = identity_plan(facts.facts(shape, visual_tokens=visual), facts.DIGEST)
        full = full_pass(small_decoder(plan), *prompt_of(visual, text))
        with Memory() as seen:
            scores = head_score(full)
        assert scores.shape == (layers, heads)
        assert text * (visual + text) <= seen.largest <= one_layer
        assert seen.peak <= 2 * one_layer, "logits and probabilities, each of one layer at most"
        peaks[layers] = seen.peak
    assert peaks[6] <= peaks[2] + 6 * heads, "what is kept of a layer is its scores"


def small_decoder(plan: Any) -> Any:
    from compressor.decoder import Decoder

    torch.manual_seed(0)
    decoder = Decoder(plan)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder.eval()


def prompt_of(visual: int, text: int) -> Iterator[torch.Tensor]:
    torch.manual_seed(1)
    places = torch.arange(visual + text)[None]
    yield torch.randn(1, visual, 16)
    yield torch.randn(1, text, 16)
    yield places[:, 5 : 5 + visual]
    yield torch.cat([places[:, :5], places[:, 5 + visual :]], dim=1)


def test_calibration_measures_both_and_resumes_to_the_same_file(
    one_model: LoadedModel,
    samples: tuple[Sample, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.test_calibration import StopAfter

    monkeypatch.setattr("compressor.calibration.run.SAVE_EVERY_SECONDS", 0.0)
    whole = calibrate(one_model, task(one_model, samples, YOPO), tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        calibrate(
            one_model, task(one_model, samples, YOPO), tmp_path / "p.json", progress=StopAfter(4)
        )
    part = Profile.load(tmp_path / "p.json")
    assert len(part.samples) == 4
    assert part.neuron_activity != whole.neuron_activity
    calibrate(one_model, task(one_model, samples, YOPO), tmp_path / "p.json")
    assert (tmp_path / "p.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    passes = [full_pass_of(one_model, sample) for sample in samples]
    activity = torch.stack([neuron_activity(full) for full in passes]).mean(0).numpy()
    np.testing.assert_allclose(whole.neuron_activity, activity, rtol=1e-5)
    scores = torch.stack([head_score(full) for full in passes]).mean(0).numpy()
    np.testing.assert_allclose(whole.mean("head_score"), scores, rtol=1e-9)


def test_a_profile_of_heads_and_neurons_makes_a_plan_and_is_drawn(
    one_model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    profile = calibrate(one_model, task(one_model, samples[:2], YOPO), tmp_path / "p.json")
    method = Yopo(heads=HeadKeys(keep=0.5), mlp_ratio=2, select="activation", keep_layers=(0,))
    plan = make_plan(one_model.facts, one_model.digest, [method], profile)
    assert sum(len(layer.groups or (0, 1)) for layer in plan.layers[1:]) == 3
    for layer, row in zip(plan.layers[:-1], profile.neuron_activity, strict=False):
        left = set(range(96)) - set(layer.neurons or ())
        assert len(left) == 48
        assert min(row[n] for n in layer.neurons or ()) >= max(row[n] for n in left)
    for measure in YOPO:
        one = profile.model_copy(update={"measures": (measure,)})
        paths = draw_profile(one, plan, tmp_path / "drawn")
        other = draw_profile(one, identity_plan(one_model.facts, ""), tmp_path / "other")
        assert paths[1].read_bytes() != other[1].read_bytes()


def yopo_profile(**changes: Any) -> dict[str, Any]:
    """Return a profile of one sample: 6 layers, 4 heads, 24 neurons."""
    sample = SampleScore(visual=12, text=9, head_score=((0.5,) * 4,) * 6)
    profile = facts.profile([[0.0] * 6]).model_copy(
        update={
            "measures": ("head_score", "neuron_activity"),
            "samples": (sample,),
            "neuron_activity": ((0.25,) * 24,) * 6,
        }
    )
    return profile.model_dump(mode="json") | changes


def stored(folder: Path, values: dict[str, Any]) -> Path:
    import json

    path = folder / "p.json"
    path.write_text(json.dumps(values))
    return path


def test_a_profile_of_heads_and_neurons_comes_back_equal(tmp_path: Path) -> None:
    profile = Profile.load(stored(tmp_path, yopo_profile()))
    assert profile.mean("head_score") == ((0.5,) * 4,) * 6
    profile.save(tmp_path / "again.json")
    assert Profile.load(tmp_path / "again.json") == profile


@pytest.mark.parametrize(
    "changes",
    [
        {"neuron_activity": []},
        {"neuron_activity": [[0.25] * 24] * 5},
        {"neuron_activity": [[0.25] * 24] * 5 + [[0.25] * 23]},
        {"samples": [{"visual": 1, "text": 1, "head_score": [[0.5] * 4] * 5}]},
        {"samples": [{"visual": 1, "text": 1, "head_score": [[0.5] * 4] * 5 + [[0.5]]}]},
        {"measures": ["head_score"]},
        {"measures": ["neuron_activity"]},
    ],
)
def test_a_profile_whose_heads_or_neurons_do_not_add_up_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = stored(tmp_path, yopo_profile(**changes))
    with pytest.raises(ProfileError, match="inconsistent; make it anew"):
        Profile.load(path)


def test_stored_activity_is_small() -> None:
    profile = Profile.model_validate(yopo_profile(samples=[], neuron_activity=[]))
    sample = SampleScore(visual=12, text=9, head_score=((0.5,) * 4,) * 6)
    for value in (1 / 3, 2 / 7, 1 / 11):
        profile = profile.with_sample(sample, {"neuron_activity": [[value] * 24] * 6})
    texts = {str(v) for row in profile.neuron_activity for v in row}
    assert max(map(len, texts)) <= 8
    assert profile.neuron_activity[0][0] == pytest.approx((1 / 3 + 2 / 7 + 1 / 11) / 3, rel=1e-5)
