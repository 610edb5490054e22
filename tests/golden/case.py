"""Reads a golden case and runs it: compressed in torch, exported, in ONNX Runtime."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from compressor.decoder import Decoder, KeyValue, decoder_from
from compressor.decoder.full_pass import full_pass
from compressor.facts import DecoderDims, ModelFacts
from compressor.methods.contribution import layer_contribution
from compressor.methods.entries import DyVTE, Method, ShortV, VisualExit, Yopo
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan, Workload
from compressor.planner import make_plan
from export.backends.onnxruntime import OnnxSession
from export.graphs.spec import decoder_graphs
from export.session.feeds import CallRows
from export.session.session import cached_rows
from export.writer.weights import SharedWeights
from export.writer.write import save_graph
from vtcompress.stages.export import decoder_makers

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
    wanted = case.facts["kv_length_after_prefill"]
    wanted = wanted if isinstance(wanted[0], list) else [wanted]
    with tempfile.TemporaryDirectory() as scratch:
        for name, side in _sides(case, Path(scratch)):
            lines += _compare(name, case, side)
            lengths[name] = side.lengths
            same = [list(found) for found in side.lengths] == wanted
            lines.append(Line(f"{name} kv lengths", 0.0, same))
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
    visual, text, visual_index, text_index = _rows(case)
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


def _rows(case: Case) -> tuple[torch.Tensor, ...]:
    spans, embeds = case.facts["spans"], case.expected["inputs_embeds"]
    first, last = spans["prefix"], spans["prefix"] + spans["visual"]
    index = torch.arange(embeds.shape[1])[None].expand(embeds.shape[0], -1)
    text = torch.cat([embeds[:, :first], embeds[:, last:]], dim=1)
    text_index = torch.cat([index[:, :first], index[:, last:]], dim=1)
    return embeds[:, first:last], text, index[:, first:last].contiguous(), text_index


def _compare(name: str, case: Case, side: "_TorchSide | _OnnxSide") -> Iterator[Line]:
    prefills, decodes = [], []
    for chosen in case.prompts():
        prefill, decode = _answers(case, side, [rows[chosen] for rows in _rows(case)])
        prefills.append(prefill)
        decodes.append(decode)
    yield _line(f"{name} prefill_logits", torch.cat(prefills), case.expected["prefill_logits"])
    yield _line(f"{name} decode_logits", torch.cat(decodes), case.expected["decode_logits"])


def _answers(
    case: Case, side: "_TorchSide | _OnnxSide", rows: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the prompt's last rows, and those of each decode step."""
    visual, text, visual_index, text_index = rows
    side.start(batch=len(visual))
    logits = side.call(visual, text, visual_index, text_index)
    side.note_lengths()
    place = text_index.max().item() + 1
    table = case.weights["model.embed_tokens.weight"]
    steps = []
    for token in case.expected["decode_input_ids"]:
        embedded = table[token][None, None].expand(visual.shape[0], -1, -1)
        index = torch.full((visual.shape[0], 1), place)
        steps.append(side.call(visual[:, :0], embedded, visual_index[:, :0], index))
        place += 1
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
        logits, self.past = self.decoder(*rows, self.past)
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
