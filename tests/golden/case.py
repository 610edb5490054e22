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

from compressor.calibration.contribution import layer_contribution
from compressor.decoder import Decoder, decoder_from
from compressor.dims import DecoderDims, ModelFacts
from compressor.methods import ShortV
from compressor.plan import Plan, Workload
from compressor.planner import identity_plan, make_plan
from export.graphs import decoder_graph
from export.onnx_graph import export_decoder, save_graph
from export.sessions import OnnxSession
from export.weights import SharedWeights

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
            image_size=1,
            image_token_id=0,
            eos_token_ids=(),
            dtype="float32",
        )

    def plan(self) -> Plan:
        """The plan that applies the case's method as published."""
        spans = self.facts["spans"]
        workload = Workload(text=spans["prefix"] + spans["suffix"])
        if self.facts["method"] != "shortv":
            raise ValueError(f"{self.folder}: method {self.facts['method']!r} is not supported")
        layers = tuple(self.facts["params"]["frozen_layers"])
        return make_plan(self.model, "golden", [ShortV(layers=layers)], workload=workload)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights under the names that the decoder is filled from."""
        return {name.removeprefix("model."): tensor for name, tensor in self.weights.items()}


@dataclass(frozen=True)
class Line:
    """One compared array: the largest difference, and whether it is within the tolerance."""

    name: str
    difference: float
    passed: bool


def run(folder: Path) -> tuple[list[Line], tuple[int, ...], tuple[int, ...]]:
    """Run a case in torch and ONNX Runtime; return the lines, and KV lengths after prefill of both."""
    case = Case.read(folder)
    plan = case.plan()
    decoder = decoder_from(plan, case.tensors(), logits="all")
    wanted = case.facts["kv_length_after_prefill"]
    lines = []
    batch = case.expected["inputs_embeds"].shape[0]
    torch_side = _TorchSide(decoder, batch)
    lines += list(_compare("torch", case, torch_side))
    with tempfile.TemporaryDirectory() as name:
        spec = decoder_graph(plan, "float32", "all")
        with SharedWeights(Path(name)) as weights:
            save_graph(export_decoder(decoder, spec), Path(name) / spec.file, weights)
        onnx_side = _OnnxSide(OnnxSession(Path(name), [spec], threads=1), batch)
        lines += list(_compare("onnx", case, onnx_side))
    for side, lengths in (("torch", torch_side.lengths), ("onnx", onnx_side.lengths)):
        lines.append(Line(f"{side} kv lengths", 0.0, list(lengths) == wanted))
    if "layer_contribution" in case.expected:
        lines += _contribution(case)
    return lines, torch_side.lengths, onnx_side.lengths


def _contribution(case: Case) -> list[Line]:
    visual, text, visual_index, text_index = _rows(case)
    decoder = decoder_from(identity_plan(case.model, "golden"), case.tensors())
    found = layer_contribution(decoder, visual, text, visual_index, text_index).numpy()
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
    suffix = case.facts["spans"]["suffix"]
    visual, text, visual_index, text_index = _rows(case)
    logits = side.call(visual, text, visual_index, text_index)[:, -suffix:]
    yield _line(f"{name} prefill_logits", logits, case.expected["prefill_logits"])
    side.note_lengths()
    place = text_index.max().item() + 1
    table = case.weights["model.embed_tokens.weight"]
    steps = []
    for token in case.expected["decode_input_ids"]:
        embedded = table[token][None, None].expand(visual.shape[0], -1, -1)
        index = torch.full((visual.shape[0], 1), place)
        steps.append(side.call(visual[:, :0], embedded, visual_index[:, :0], index))
        place += 1
    yield _line(f"{name} decode_logits", torch.cat(steps, dim=1), case.expected["decode_logits"])


def _line(name: str, found: torch.Tensor, wanted: torch.Tensor) -> Line:
    if found.shape != wanted.shape:
        return Line(
            f"{name} shape {tuple(found.shape)} for {tuple(wanted.shape)}", float("inf"), False
        )
    difference = float((found - wanted).abs().max())
    return Line(name, difference, difference <= TOLERANCE)


class _TorchSide:
    def __init__(self, decoder: Decoder, batch: int) -> None:
        self.decoder = decoder
        self.past = decoder.empty_past(batch)
        self.lengths: tuple[int, ...] = ()

    @torch.inference_mode()
    def call(self, *rows: torch.Tensor) -> torch.Tensor:
        logits, self.past = self.decoder(*rows, self.past)
        return logits

    def note_lengths(self) -> None:
        self.lengths = tuple(pair.key.shape[2] for pair in self.past)


class _OnnxSide:
    def __init__(self, session: OnnxSession, batch: int) -> None:
        self.session = session
        self.past = session.empty_past(batch)
        self.lengths: tuple[int, ...] = ()

    def call(self, *rows: torch.Tensor) -> torch.Tensor:
        logits, self.past = self.session.decode(*(r.contiguous().numpy() for r in rows), self.past)
        return torch.from_numpy(logits)

    def note_lengths(self) -> None:
        self.lengths = tuple(shape[2] for shape in self.session.past_shapes(self.past)[::2])
