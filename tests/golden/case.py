"""Reads a golden case and runs it: compressed in torch, exported, in ONNX Runtime."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

from compressor.arrangement import Unpadded
from compressor.chosen_rows import load_front_weights, vision_of
from compressor.compressed import CompressedModel
from compressor.decoder import decoder_from
from compressor.decoder.full_pass import full_pass
from compressor.facts import DecoderDims, ModelFacts, TowerFacts
from compressor.families import VisionEncoder
from compressor.families.llava.arranged import ArrangedRows
from compressor.families.llava.tower_family import ProjectedStates
from compressor.methods import layer_scores, run_rules
from compressor.methods.dyvte import DyVTE
from compressor.methods.gprune import GPrune, flow_scores
from compressor.methods.mixture.gamma_mod import GammaMod
from compressor.methods.mixture.ranks import attention_ranks, mean_ranks
from compressor.methods.shortv import ShortV, layer_contribution
from compressor.methods.visual_exit import VisualExit
from compressor.methods.wico import WiCo
from compressor.methods.wico_plus import WicoPlus
from compressor.methods.yopo.method import Yopo
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan, Workload
from compressor.planner import make_plan
from compressor.samples.layout import Layout, Pictured, layout_around
from export.backends.onnxruntime import OnnxSession
from export.backends.torch_model import TorchSession
from export.graphs.spec import decoder_graphs, vision_graph
from export.session.feeds import CallRows, prompt_rows, text_rows
from export.session.session import Session, cached_rows, look
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from vtcompress.stages.exporting.torch_side import decoder_makers

if TYPE_CHECKING:
    from compressor.contract.method import Method

TOLERANCE = 1e-4
# Contributions are means of tiny numbers: |a - b| <= RELATIVE |b| + ABSOLUTE, and the same ranking.
RELATIVE, ABSOLUTE = 1e-4, 1e-6
# Singular values at the tolerance are counted or not: ranks of one head, and their mean over a layer's.
RANK_OF_HEAD, RANK_OF_LAYER = 1.0, 0.5


@dataclass(frozen=True)
class Case:
    """A golden case as it lies on disk."""

    folder: Path
    facts: dict[str, Any]
    weights: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]
    ratio: str = ""
    """End of the names of arrays and params that are of another ratio of the same case."""

    @property
    def ratios(self) -> "list[Case]":
        """The case at each of its ratios; most have one."""
        ends = [
            key.removeprefix("keep_ratio") for key in self.facts["params"] if "keep_ratio" in key
        ]
        return [replace(self, ratio=end) for end in ends] or [self]

    def array(self, name: str) -> torch.Tensor:
        """Return an expected array of the case's ratio."""
        return self.expected[f"{name}{self.ratio}"]

    @classmethod
    def read(cls, folder: Path) -> "Case":
        """Read the three files of a case."""
        return cls(
            folder,
            json.loads((folder / "case.json").read_text(encoding="utf-8")),
            load_file(folder / "model.safetensors"),
            load_file(folder / "expected.safetensors"),
        )

    @property
    def tiles(self) -> list[torch.Tensor]:
        """Visual rows of each tile, of the whole picture first, where the case tells them."""
        names = ("features", "base_features", "tile_features")
        return [self.expected[name] for name in names if name in self.expected]

    @property
    def arrangement(self) -> Unpadded | None:
        """How the rows of its tiles become those of its picture."""
        grid = self.facts["params"].get("base_grid")
        return None if grid is None else Unpadded(side=grid[0])

    @property
    def pictured(self) -> Pictured:
        """The case's picture: pixels are its own, or its tiles' numbers."""
        if "pixel_values" in self.expected:
            rows = self.facts["params"]["vision_rows_before"]
            return Pictured(self.expected["pixel_values"].numpy(), rows)
        pixels = np.arange(len(self.tiles), dtype=np.float32).reshape(-1, 1, 1, 1)
        arranged = self.arrangement
        one = None
        if arranged is not None:
            width, height = self.facts["params"]["image_size_wh"]
            one = arranged.of_tiles(height, width, (1, 1))
        rows = self.facts["spans"]["visual"]
        return Pictured(pixels.repeat(3, axis=1), rows, one)

    @property
    def model(self) -> ModelFacts:
        """The case's decoder as facts."""
        d, params, vision = (self.facts.get(key, {}) for key in ("dims", "params", "vision_dims"))
        head_dim = d["hidden_size"] // d["num_attention_heads"]
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        dims = DecoderDims(
            layers=d["num_hidden_layers"],
            hidden=d["hidden_size"],
            heads=d["num_attention_heads"],
            kv_heads=d["num_key_value_heads"],
            head_dim=head_dim,
            intermediate=d["intermediate_size"],
            vocab=d["vocab_size"],
            rms_norm_eps=d["rms_norm_eps"],
            rope_inv_freq=tuple((1.0 / d["rope_theta"] ** steps).tolist()),
            # Sections of frequencies that time, row and column turn; such decoders have biases too.
            rope_axes=tuple(np.repeat(range(3), d["mrope_section"]).tolist())
            if "mrope_section" in d
            else None,
            qkv_bias="mrope_section" in d,
            max_positions=d["max_position_embeddings"],
        )
        return ModelFacts(
            name=self.folder.name,
            family="golden",
            architecture="LlamaForCausalLM",
            decoder=dims,
            visual_tokens=len(self.tiles[0])
            if self.tiles
            else params.get("vision_rows_before", self.facts["spans"]["visual"]),
            most_tiles=max(1, len(self.tiles)),
            arrangement=self.arrangement,
            most_rows=self.facts["spans"]["visual"] if self.arrangement else None,
            token_grid=params.get("grid", params.get("in_grid")),
            image_size=vision["image_size"] if vision else 1,
            tower=TowerFacts(
                class_token=True,
                layers=vision["num_hidden_layers"],
                layers_read=vision["num_hidden_layers"],
                width=vision["hidden_size"],
            )
            if vision
            else None,
            image_token_id=0,
            eos_token_ids=(),
            dtype="float32",
        )

    def plan(self, form: str = "dynamic") -> Plan:
        """The plan that applies the case's method as published; gates in one of their two forms."""
        spans = self.facts["spans"]
        workload = Workload(text=spans["prefix"] + spans["suffix"])
        return make_plan(self.model, "golden", [self.method(form)], workload=workload)

    def method(self, form: str = "dynamic") -> "Method":
        """Return the case's method, as `plan` applies it."""
        params = self.facts["params"]
        method: Method
        match self.facts["method"]:
            case "shortv":
                method = ShortV(layers=tuple(params["frozen_layers"]))
            case "vtw":
                method = VisualExit(layer=params["exit_layer_input"])
            case "dyvte":
                method = DyVTE.model_validate(
                    {"gates": self.folder / "model.safetensors", "exit": form}
                )
            case "yopo":
                method = self._yopo()
            case "gprune":
                method = GPrune(
                    keep=params[f"keep_ratio{self.ratio}"],
                    threshold=params["similarity"],
                    temperature=params["temperature"],
                    steps=params["iterations"],
                )
            case "wico_plus":
                # Its `*_channels` arrays, of rows cut along their channels, are not compared: the released
                # training does not do that.
                method = WicoPlus(
                    layer=params["upsample_at_layer_input"], rows=params["upsampled_visual"]
                )
            case "wico":
                method = WiCo(weights=self.folder / "model.safetensors")
            case "yopo_qwen2vl":
                # Rows that leave are gone from its softmax too. Of its arrays those with heads cut as well,
                # `*_heads`, are not compared: it cuts query heads, and rows of visual tokens read text in
                # heads that they are cut from, which the released code for LLaVA has not.
                method = VisualExit(layer=params["visual_off_from_layer"])
            case "gamma_mod_fixed_capacity":
                layers = range(self.model.decoder.layers)
                method = GammaMod(
                    routers=self.folder / "model.safetensors",
                    dense=tuple(i for i in layers if i not in params["mod_layers"]),
                    keep=params["visual_capacity"] / self.facts["spans"]["visual"],
                )
            case other:
                raise ValueError(f"{self.folder}: method {other!r} is not supported")
        return method

    def _yopo(self) -> Yopo:
        params = self.facts["params"]
        # Kept until the process ends: a recipe names the file.
        mask = Path(tempfile.mkdtemp()) / "head_keep.npy"
        np.save(mask, self.expected["head_keep"].numpy())
        return Yopo.model_validate(
            {
                "semantics": "masked",
                "heads": {"mask": mask},
                "window": params["window"],
                "mlp_ratio": params["mlp_ratio"],
                "off_from": params["visual_off_from_layer"],
            }
        )

    @property
    def lengths(self) -> list[list[int]]:
        """KV length of each layer after the prefill, of each prompt that runs alone."""
        found = self.facts[f"kv_length_after_prefill{self.ratio}"]
        if self.facts["method"] == "yopo_qwen2vl":  # the released code keeps rows that nobody reads
            off, visual = (
                self.facts["params"]["visual_off_from_layer"],
                self.facts["spans"]["visual"],
            )
            found = [n - visual * (layer >= off) for layer, n in enumerate(found)]
        return found if isinstance(found[0], list) else [found]

    def prompts(self) -> list[slice]:
        """Which prompts of the case's arrays run together: all, but one by one where gates decide."""
        batch = self.expected["inputs_embeds"].shape[0]
        alone = self.facts["method"] == "dyvte"
        return [slice(i, i + 1) for i in range(batch)] if alone else [slice(0, batch)]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights under the names that the decoder is filled from."""
        return {name.removeprefix("model."): tensor for name, tensor in self.weights.items()}


@dataclass(frozen=True)
class Line:
    """One compared array: the largest difference, and whether it is within the tolerance."""

    name: str
    difference: float
    passed: bool


def run(folder: Path) -> tuple[list[Line], dict[str, list[tuple[int, ...]]]]:
    """Run a case in every form; return the lines, and KV lengths after each prefill by form."""
    lines: list[Line] = []
    whole = Case.read(folder)
    if (
        "arank" in whole.expected
    ):  # of the dense model; its answers depend on data as no fixed graph does
        return [*_ranks(whole)], {}
    lengths: dict[str, list[tuple[int, ...]]] = {}
    for case in whole.ratios:
        with tempfile.TemporaryDirectory() as scratch:
            for name, side in _sides(case, Path(scratch)):
                form = f"{name}{case.ratio}"
                lines += _compare(form, case, side)
                lengths[form] = side.lengths
                same = [list(found) for found in side.lengths] == case.lengths
                lines.append(Line(f"{form} kv lengths", 0.0, same))
        lines += _positions(case)
    if "kept_visual" in whole.expected:
        lines += _chosen(whole)
    if case.tiles:
        lines += _scores(case)
    if "layer_contribution" in case.expected:
        lines += _contribution(case)
    return lines, lengths


def _sides(case: Case, scratch: Path) -> Iterator[tuple[str, "_Side"]]:
    plan = case.plan()
    decoder = decoder_from(
        plan, case.tensors(), logits="all", scores=layer_scores(plan), runs=run_rules(plan)
    )
    vision = None
    if plan.front is not None:
        tiles = _tower(case) if plan.front.weights else _given(case)
        vision = vision_of(plan, tiles, load_front_weights([case.method()]))
    table = case.weights["model.embed_tokens.weight"]
    small = CompressedModel(plan, decoder, table, vision, None, None)  # type: ignore[arg-type]
    yield "torch", _Side(TorchSession(small))
    yield "onnx", _Side(_exported(small, plan, scratch / "onnx"))
    if plan.gates is not None:
        yield "staged", _Side(_exported(small, case.plan("staged"), scratch / "staged"))


class _Given(VisionEncoder):
    """Gives the case's features of every tile, so that the rule is what a vision graph does."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features_given = torch.nn.Parameter(features, requires_grad=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map pixels [I, 3, 1, 1], which are numbers of tiles, to [I, N, D]."""
        return self.features_given[pixel_values[:, 0, 0, 0].long()]


def _given(case: Case) -> VisionEncoder:
    """Return what gives the case's visual rows, arranged if they are."""
    tiles = _Given(torch.stack(case.tiles))
    if case.arrangement is None:
        return tiles
    return ArrangedRows(tiles, torch.nn.Parameter(case.expected["image_newline"]))


def _tower(case: Case) -> VisionEncoder:
    """Return the case's own tower as LLaVA has it; the projector behind it is none of the case's."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    dims = CLIPVisionConfig(**case.facts["vision_dims"])
    tower = CLIPVisionModel(dims).eval()
    prefix = "model.vision_tower.vision_tower.vision_model."
    stored = {k.removeprefix(prefix): v for k, v in case.weights.items() if prefix in k}
    missing, unexpected = tower.load_state_dict(stored, strict=False)
    assert not unexpected
    assert missing in ([], ["embeddings.position_ids"])
    config = SimpleNamespace(vision_config=dims, vision_feature_layer=-2)
    projector = torch.nn.Linear(dims.hidden_size, case.model.decoder.hidden)
    return ProjectedStates(config, tower, projector, image_size=dims.image_size, first=1).eval()


def _exported(small: CompressedModel, plan: Plan, folder: Path) -> OnnxSession:
    folder.mkdir()
    specs = decoder_graphs(plan, "float32", "all")
    vision = vision_graph(plan.model, "float32", plan.front)
    with SharedWeights(folder) as weights:
        for spec, make in zip(specs, decoder_makers(small.decoder, plan), strict=True):
            save_graph(make(spec), folder / spec.file, weights)
        if plan.front is not None:
            save_graph(export_vision(small, vision), folder / vision.file, weights)
    return OnnxSession(folder, [vision, *specs], threads=1)


def _scores(case: Case) -> Iterator[Line]:
    """Compare the scores that a choice is made by, and how many neighbours each row has, grid by grid."""
    params, expected = case.facts["params"], case.expected
    grids = {"": expected.get("features")}
    if (arranged := case.pictured.arranged) is not None:
        rows = expected["image_rows"]
        base, tile = (part.cells for part in arranged.parts())
        grids = {"base_": rows[base], "tile_": rows[tile]}
    for name, rows in grids.items():
        scores, degree = flow_scores(
            rows[None], params["similarity"], params["temperature"], params["iterations"]
        )
        yield _line(f"{name}scores", scores[0], expected[f"{name}scores"])
        yield Line(f"{name}degree", 0.0, degree[0].long().equal(expected[f"{name}degree"]))


def _ranks(case: Case) -> Iterator[Line]:
    """Compare the rank of each head's attention in the dense model, and their mean of each layer."""
    decoder = decoder_from(identity_plan(case.model, "golden"), case.tensors())
    full = full_pass(decoder, *map(torch.from_numpy, _rows(case, slice(None))[:4]))
    by_head = torch.stack([attention_ranks(full.at(i)) for i in range(len(full.visual))])
    pairs = {
        "arank of heads": (by_head, "arank_heads", RANK_OF_HEAD),
        "arank": (mean_ranks(full), "arank", RANK_OF_LAYER),
    }
    for name, (found, array, most) in pairs.items():
        difference = float((found - case.expected[array]).abs().max())
        yield Line(name, difference, difference <= most)


def _chosen(case: Case) -> Iterator[Line]:
    """Compare which visual rows run layers that not all run, in the prefill."""
    kept, plan = {}, case.plan()
    decoder = decoder_from(plan, case.tensors(), runs=run_rules(plan))
    for i in plan.runs():
        decoder.layers[i].register_forward_pre_hook(lambda x, rows: kept.update({x: rows[0]}))
    rows = [torch.from_numpy(part) for part in _rows(case, slice(None))[:4]]
    with torch.inference_mode():
        decoder(*rows, decoder.empty_past(1))
        found = torch.cat([layer.chosen(layer.weights(visual)) for layer, visual in kept.items()])
    yield Line("kept places", 0.0, found.equal(case.expected["kept_visual"]))


def _contribution(case: Case) -> list[Line]:
    decoder = decoder_from(identity_plan(case.model, "golden"), case.tensors())
    full = full_pass(decoder, *map(torch.from_numpy, _rows(case, slice(None))[:4]))
    found = layer_contribution(full).numpy()
    wanted = case.expected["layer_contribution"].double().numpy()
    difference = np.abs(found - wanted)
    close = bool((difference <= RELATIVE * np.abs(wanted) + ABSOLUTE).all())
    same = np.argsort(found, kind="stable").tolist() == np.argsort(wanted, kind="stable").tolist()
    return [
        Line("layer contribution", float(difference.max()), close),
        Line("layer ranking", 0.0, same),
    ]


def _layout(case: Case) -> Layout:
    spans = case.facts["spans"]
    text = np.zeros(spans["prefix"] + spans["suffix"], np.int64)
    model = case.plan().model if "vision_dims" in case.facts else case.model
    rows = spans["visual"] if case.arrangement else model.visual_tokens
    return layout_around(text, (rows,), spans["prefix"], model)


def _rows_kept(case: Case, session: Session) -> CallRows:
    """Return the rows of a case in which some visual ones are kept, as the vision side gives them."""
    layout = _layout(case)
    text = case.expected["inputs_embeds"].numpy()[:, layout.text_index]
    return prompt_rows(layout, text, *look(session, [case.pictured]))


def _rows(case: Case, chosen: slice) -> CallRows:
    """Return the rows of some of a case's prompts."""
    embeds, layout = case.expected["inputs_embeds"][chosen].numpy(), _layout(case)
    rows = text_rows(layout, embeds[:, layout.text_index])
    index = np.tile(layout.visual_index, (len(embeds), 1))
    return rows._replace(visual=embeds[:, layout.visual_index], visual_index=index)


def _positions(case: Case) -> Iterator[Line]:
    """Compare the positions of rows with those of the case, if it has any."""
    if "position_ids" not in case.expected or case.plan().front is not None:
        return
    layout = _layout(case)
    found = np.zeros((layout.rows, 3), np.int64)
    found[np.concatenate([layout.visual_index, layout.text_index])] = layout.positions
    steps = case.expected["decode_position_ids"]
    behind = [int(layout.behind(i).positions.max()) for i in range(len(steps))]
    same = (
        np.array_equal(case.expected["position_ids"].numpy(), found.T) and behind == steps.tolist()
    )
    yield Line("positions", 0.0, same)


def _compare(name: str, case: Case, side: "_Side") -> Iterator[Line]:
    prefills, decodes = [], []
    for chosen in case.prompts():
        if side.session.rows_kept is None:
            rows = _rows(case, chosen)
        else:
            rows = _rows_kept(case, side.session)
            if "visual_tokens" in case.expected:
                found = torch.from_numpy(rows.visual)
                yield _line(f"{name} visual tokens", found, case.expected["visual_tokens"])
            else:
                yield from _places(name, case, rows)
        prefill, decode = _answers(case, side, rows)
        prefills.append(prefill)
        decodes.append(decode)
    yield _line(f"{name} prefill_logits", torch.cat(prefills), case.array("prefill_logits"))
    yield _line(f"{name} decode_logits", torch.cat(decodes), case.array("decode_logits"))


def _places(name: str, case: Case, rows: CallRows) -> Iterator[Line]:
    """Compare which visual rows were kept, and the places of all rows and of those that are generated."""
    layout = _layout(case)
    kept = rows.visual_index[0] - layout.visual_index[0]
    wanted = "image_keep_indices" if case.arrangement else "keep_indices"
    yield Line(f"{name} kept places", 0.0, kept.tolist() == case.array(wanted).tolist())
    found = np.sort(np.concatenate([rows.visual_index[0], rows.text_index[0]]))
    steps = case.expected["decode_position_ids"].tolist()
    behind = [int(layout.behind(number).text_index[0]) for number in range(len(steps))]
    same = found.tolist() == case.array("position_ids").tolist() and behind == steps
    yield Line(f"{name} positions", 0.0, same)


def _answers(case: Case, side: "_Side", rows: CallRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the prompt's last rows, and those of each decode step."""
    batch = len(rows.text)
    side.start(batch)
    logits = side.call(rows)
    side.note_lengths()
    table, layout = case.weights["model.embed_tokens.weight"], _layout(case)
    steps = []
    for number, token in enumerate(case.expected["decode_input_ids"]):
        embedded = np.tile(table[token].numpy(), (batch, 1, 1))
        steps.append(side.call(text_rows(layout.behind(number), embedded)))
    return logits[:, -case.facts["spans"]["suffix"] :], torch.cat(steps, dim=1)


def _line(name: str, found: torch.Tensor, wanted: torch.Tensor) -> Line:
    if found.shape != wanted.shape:
        return Line(
            f"{name} shape {tuple(found.shape)} for {tuple(wanted.shape)}", float("inf"), False
        )
    difference = float((found - wanted).abs().max())
    return Line(name, difference, difference <= TOLERANCE)


class _Side:
    """A session on a case's decoder, and the KV lengths that each prefill left."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.past: Any = None
        self.lengths: list[tuple[int, ...]] = []

    def start(self, batch: int) -> None:
        self.past = self.session.empty_past(batch)

    def call(self, rows: CallRows) -> torch.Tensor:
        logits, self.past = self.session.decode(rows, self.past)
        return torch.from_numpy(logits)

    def note_lengths(self) -> None:
        self.lengths.append(cached_rows(self.session.caches, self.session.past_shapes(self.past)))
