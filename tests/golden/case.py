"""Reads a golden case and runs it: compressed in torch, exported, in ONNX Runtime."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

from compressor.decoder import Decoder, KeyValue, decoder_from
from compressor.decoder.full_pass import full_pass
from compressor.facts import DecoderDims, ModelFacts
from compressor.methods.dyvte import DyVTE
from compressor.methods.shortv import ShortV, layer_contribution
from compressor.methods.visual_exit import VisualExit
from compressor.methods.yopo.method import Yopo
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan, Workload
from compressor.planner import make_plan
from compressor.samples.layout import Layout, layout_around
from export.backends.onnxruntime import OnnxSession
from export.graphs.spec import decoder_graphs
from export.session.feeds import CallRows, text_rows
from export.session.session import cached_rows
from export.writer.weights import SharedWeights
from export.writer.write import save_graph
from vtcompress.stages.exporting.torch_side import decoder_makers

if TYPE_CHECKING:
    from compressor.contract.method import Method

TOLERANCE = 1e-4
# Contributions are means of tiny numbers: |a - b| <= RELATIVE |b| + ABSOLUTE, and the same ranking.
RELATIVE, ABSOLUTE = 1e-4, 1e-6


@dataclass(frozen=True)
class Case:
    """A golden case as it lies on disk."""

    folder: Path
    facts: dict[str, Any]
    weights: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]

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
    def model(self) -> ModelFacts:
        """The case's decoder as facts."""
        d = self.facts["dims"]
        sections = d.get("mrope_section")
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
            rope_axes=sections and tuple(np.repeat(np.arange(len(sections)), sections).tolist()),
            qkv_bias="model.layers.0.self_attn.q_proj.bias" in self.weights,
            max_positions=d["max_position_embeddings"],
        )
        return ModelFacts(
            name=self.folder.name,
            family="golden",
            architecture="LlamaForCausalLM",
            decoder=dims,
            visual_tokens=self.facts["spans"]["visual"],
            token_grid=self.facts["params"].get("grid"),
            image_size=1,
            image_token_id=0,
            eos_token_ids=(),
            dtype="float32",
        )

    def plan(self, form: str = "dynamic") -> Plan:
        """The plan that applies the case's method as published; gates in one of their two forms."""
        spans, params = self.facts["spans"], self.facts["params"]
        workload = Workload(text=spans["prefix"] + spans["suffix"])
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
            case "yopo_qwen2vl":
                # Rows that leave are gone from its softmax too. Of its arrays those with heads cut as well,
                # `*_heads`, are not compared: it cuts query heads, and rows of visual tokens read text in
                # heads that they are cut from, which the released code for LLaVA has not.
                method = VisualExit(layer=params["visual_off_from_layer"])
            case other:
                raise ValueError(f"{self.folder}: method {other!r} is not supported")
        return make_plan(self.model, "golden", [method], workload=workload)

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
        found = self.facts["kv_length_after_prefill"]
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
    case = Case.read(folder)
    lines: list[Line] = []
    lengths: dict[str, list[tuple[int, ...]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, side in _sides(case, Path(scratch)):
            lines += _compare(name, case, side)
            lengths[name] = side.lengths
            same = [list(found) for found in side.lengths] == case.lengths
            lines.append(Line(f"{name} kv lengths", 0.0, same))
    lines += _positions(case)
    if "layer_contribution" in case.expected:
        lines += _contribution(case)
    return lines, lengths


def _sides(case: Case, scratch: Path) -> Iterator[tuple[str, "_TorchSide | _OnnxSide"]]:
    plan = case.plan()
    decoder = decoder_from(plan, case.tensors(), logits="all")
    yield "torch", _TorchSide(decoder)
    yield "onnx", _OnnxSide(_exported(decoder, plan, scratch / "onnx"))
    if plan.gates is not None:
        yield "staged", _OnnxSide(_exported(decoder, case.plan("staged"), scratch / "staged"))


def _exported(decoder: Decoder, plan: Plan, folder: Path) -> OnnxSession:
    folder.mkdir()
    specs = decoder_graphs(plan, "float32", "all")
    with SharedWeights(folder) as weights:
        for spec, make in zip(specs, decoder_makers(decoder, plan), strict=True):
            save_graph(make(spec), folder / spec.file, weights)
    return OnnxSession(folder, specs, threads=1)


def _contribution(case: Case) -> list[Line]:
    visual, text, visual_index, text_index = _rows(case)[:4]
    decoder = decoder_from(identity_plan(case.model, "golden"), case.tensors())
    full = full_pass(decoder, visual, text, visual_index, text_index)
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
    return layout_around(text, (spans["visual"],), spans["prefix"], case.model)


def _rows(case: Case) -> tuple[torch.Tensor, ...]:
    """Return embeddings, places and, where they are others, positions of visual and text rows."""
    embeds, layout = case.expected["inputs_embeds"], _layout(case)
    visual, text = (torch.from_numpy(i) for i in (layout.visual_index, layout.text_index))
    parts = [visual, text]
    if layout.positions is not None:
        parts.append(torch.from_numpy(layout.positions))
    indices = (part[None].repeat(len(embeds), *[1] * part.ndim) for part in parts)
    return embeds[:, visual], embeds[:, text], *indices


def _positions(case: Case) -> Iterator[Line]:
    """Compare the positions of rows with those of the case, if it has any."""
    if "position_ids" not in case.expected:
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


def _compare(name: str, case: Case, side: "_TorchSide | _OnnxSide") -> Iterator[Line]:
    prefills, decodes = [], []
    for chosen in case.prompts():
        prefill, decode = _answers(case, side, [rows[chosen] for rows in _rows(case)])
        prefills.append(prefill)
        decodes.append(decode)
    for what, found in (("prefill", prefills), ("decode", decodes)):
        logits = f"{what}_logits"
        yield _line(f"{name} {logits}", torch.cat(found), case.expected[logits])


def _answers(
    case: Case, side: "_TorchSide | _OnnxSide", rows: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the prompt's last rows, and those of each decode step."""
    visual, layout = rows[0], _layout(case)
    side.start(batch=len(visual))
    logits = side.call(*rows)
    side.note_lengths()
    table = case.weights["model.embed_tokens.weight"]
    steps = []
    for number, token in enumerate(case.expected["decode_input_ids"]):
        embedded = table[token][None, None].expand(visual.shape[0], -1, -1)
        call = text_rows(layout.behind(number), embedded.numpy())
        later = [torch.from_numpy(part) for part in call[:5] if part is not None]
        steps.append(side.call(*later))
    return logits[:, -case.facts["spans"]["suffix"] :], torch.cat(steps, dim=1)


def _line(name: str, found: torch.Tensor, wanted: torch.Tensor) -> Line:
    if found.shape != wanted.shape:
        return Line(
            f"{name} shape {tuple(found.shape)} for {tuple(wanted.shape)}", float("inf"), False
        )
    difference = float((found - wanted).abs().max())
    return Line(name, difference, difference <= TOLERANCE)


class _TorchSide:
    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.past: list[KeyValue | torch.Tensor] = []
        self.lengths: list[tuple[int, ...]] = []

    def start(self, batch: int) -> None:
        self.past = self.decoder.empty_past(batch)

    @torch.inference_mode()
    def call(self, *rows: torch.Tensor) -> torch.Tensor:
        logits, self.past = self.decoder(*rows[:4], self.past, *rows[4:])
        return logits

    def note_lengths(self) -> None:
        pairs = (item for item in self.past if isinstance(item, KeyValue))
        self.lengths.append(tuple(pair.key.shape[2] for pair in pairs))


class _OnnxSide:
    def __init__(self, session: OnnxSession) -> None:
        self.session = session
        self.past: Any = None
        self.lengths: list[tuple[int, ...]] = []

    def start(self, batch: int) -> None:
        self.past = self.session.empty_past(batch)

    def call(self, *rows: torch.Tensor) -> torch.Tensor:
        logits, self.past = self.session.decode(
            CallRows(*(r.contiguous().numpy() for r in rows)), self.past
        )
        return torch.from_numpy(logits)

    def note_lengths(self) -> None:
        self.lengths.append(cached_rows(self.session.caches, self.session.past_shapes(self.past)))
