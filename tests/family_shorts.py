"""The first layers of a tiny family's model, for what would take too long on all of them.

Single cuts and gates run on them in ONNX Runtime and OpenVINO, and engines are built of them. The decoder
alone is exported, with the family's own weights; vision and embedding are graphs of its identity artifact.
"""

import copy
import hashlib
from dataclasses import replace
from functools import cache, cached_property
from math import erf, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import vtcompress
from compressor.compressed import compress
from compressor.decoder.weights import LoadedGates, load_gates
from compressor.disk.gate_file import GateFile
from compressor.families import LoadedModel
from compressor.plan.plan import Plan
from export.backends.onnxruntime import OnnxSession
from export.backends.openvino import OpenVinoSession
from export.backends.tensorrt.maker import Maker, check_buildable
from export.backends.tensorrt.targets import TARGETS
from export.backends.torch_model import TorchSession
from export.graphs.limits import limits_of
from export.graphs.profiles import profiles_of
from export.graphs.spec import GraphSpec, decoder_graphs, vision_graph
from export.runtime.runtime import Runtime
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests.conftest import made_once
from tests.decoders import write_decoder
from tests.family_cases import CONVERSATIONS, HEAD_MASK, Entries, Made
from tests.family_matrix import GATED, RTX
from tests.runtimes import Beside, Spy
from vtcompress.stages.exporting.torch_side import decoder_makers

FIRST_LAYERS = 3
GATE_BEHIND, GATE_WIDTH = 1, 8
# Prompts that a gate decides on otherwise, one than the other.
ASKED_OF_GATES = ("one picture", "two apart")
LEAST_MARGIN = 0.1  # of a gate's logits, so that no rounding decides
SESSIONS = {"onnxruntime": OnnxSession, "openvino": OpenVinoSession}


class Short(Made):
    """What there is of a family's first layers.

    Args:
        whole: the family's model.
    """

    def __init__(self, whole: Made) -> None:
        self.whole = whole
        super().__init__(whole.family, whole.place / "short")
        self.specs = cache(self._specs)
        self.margin = cache(self._margin)

    @cached_property
    def folder(self) -> Path:
        return self.whole.folder

    @cached_property
    def loaded(self) -> LoadedModel:
        found = self.whole.loaded
        original = copy.deepcopy(found.original)
        layers = original
        for name in self.family.layers.split("."):
            layers = getattr(layers, name)
        del layers[FIRST_LAYERS:]
        original.config.get_text_config().num_hidden_layers = FIRST_LAYERS
        decoder = found.facts.decoder.model_copy(update={"layers": FIRST_LAYERS})
        facts = found.facts.model_copy(update={"decoder": decoder})
        return replace(found, facts=facts, original=original)

    def entries(self, cut: str) -> Entries:
        file = self.place / "heads.npy"
        np.save(file, HEAD_MASK[:FIRST_LAYERS])
        heads = {"heads": {"mask": file}}
        window = {"window": 3} if self.family.grid else {}
        if cut in GATED:
            exit_ = cut.rpartition(" ")[2]
            return [{"dyvte": {"gates": self.gates, "exit": exit_, "candidates": [GATE_BEHIND]}}]
        return {
            "identity": [],
            "frozen": [{"shortv": {"layers": [0]}}],
            "exit": [{"visual_exit": {"layer": 2}}],
            "heads": [{"yopo": heads}],
            "neurons": [{"yopo": {"mlp_ratio": 3}}],
            "window": [{"yopo": {"window": 3}}],
            "all": [
                {"visual_exit": {"layer": 2}},
                {"yopo": {**heads, "mlp_ratio": 2, **window}},
                {"shortv": {"layers": [0]}},
            ],
        }[cut]

    @cached_property
    def states(self) -> dict[str, np.ndarray]:
        """What a gate reads [2D] of each prompt in the unmodified model; see `compressor.decoder.gates`."""
        found = {}
        for name in ASKED_OF_GATES:
            inputs = self.inputs([self._asked(*CONVERSATIONS[name])])
            visual = (inputs["input_ids"][0] == self.loaded.facts.image_token_id).nonzero()
            with torch.inference_mode():
                seen = self.loaded.original(**inputs, output_hidden_states=True)
            behind = seen.hidden_states[GATE_BEHIND + 1][0, int(visual[-1]) + 1 :]
            assert len(behind) > 1
            found[name] = torch.cat([behind[:-1].mean(0), behind[-1]]).numpy()
        return found

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the first drawn gate that fires in one of two prompts."""
        for seed in range(1000):
            rng = np.random.default_rng(seed)
            hidden = self.loaded.facts.decoder.hidden
            one = rng.normal(size=(GATE_WIDTH, 2 * hidden)).astype(np.float32)
            other = rng.normal(size=(2, GATE_WIDTH)).astype(np.float32)
            margins = [gate_margin(one, other, self.states[name]) for name in ASKED_OF_GATES]
            if min(margins) < -LEAST_MARGIN and max(margins) > LEAST_MARGIN:
                return one, other
        raise AssertionError("no gate tells the prompts from each other")

    @cached_property
    def gates(self) -> Path:
        file = self.place / "gates.safetensors"
        tensors = {
            f"model.visual_gates_router.{GATE_BEHIND}.{name}.weight": torch.from_numpy(weight)
            for name, weight in zip(("w1", "w2"), self.weights, strict=True)
        }
        if not file.exists():
            save_file(tensors, file)
        return file

    def _margin(self, name: str) -> float:
        return gate_margin(*self.weights, self.states[name])

    def fires(self, name: str) -> bool:
        """Return whether the gate sends visual rows away in a prompt."""
        return name in ASKED_OF_GATES and self.margin(name) > 0

    def hooked_plan(self, name: str, cut: str) -> Plan:
        """See `Made.hooked_plan`: behind a gate that fires visual rows are gone."""
        plan = super().hooked_plan(name, cut)
        return plan.fired_after(GATE_BEHIND if self.fires(name) else None) if plan.gates else plan

    def loaded_gates(self, cut: str) -> LoadedGates | None:
        return load_gates(GateFile.read(self.gates), (GATE_BEHIND,)) if cut in GATED else None

    def _specs(self, cut: str) -> tuple[GraphSpec, ...]:
        return decoder_graphs(self.plan(cut), "float32", "last")

    def graphs(self, cut: str) -> Path:
        """Return a folder of the plan's decoder alone, float32."""
        plan = self.plan(cut)

        def write(half: Path) -> None:
            small = compress(self.loaded, plan, gates=self.loaded_gates(cut))
            with SharedWeights(half) as weights:
                makers = decoder_makers(small.decoder, plan)
                for spec, make in zip(self.specs(cut), makers, strict=True):
                    save_graph(make(spec), half / spec.file, weights)

        return made_once(self.place / cut, write)

    def _runtime(self, cut: str, backend: str) -> tuple[Runtime, Spy]:
        beside = self.whole.runtime("identity", backend)[1].inner
        if backend in SESSIONS:
            session: Any = SESSIONS[backend](self.graphs(cut), self.specs(cut), threads=1)
        else:
            small = compress(self.loaded, self.plan(cut), gates=self.loaded_gates(cut))
            session = TorchSession(small)
        spy, folder = Beside(session, looks=beside), self.whole.artifact("identity")
        form = vtcompress.Artifact.open(folder).manifest.picture_form
        return Runtime.on_session(spy, folder, self.loaded.facts, form), spy

    def build(self, cut: str) -> None:
        """Build engines of the plan's decoder, float16, with drawn weights; equal graphs once a session."""
        plan = self.plan(cut)
        check_buildable(decoder_graphs(plan, "float16", "last"), "float16", "the tiny model")
        folder = made_once(self.place / f"float16 {cut}", lambda half: write_decoder(half, plan))
        for spec in decoder_graphs(plan, "float16", "last"):
            self._engine(folder, spec)

    def build_tower(self) -> None:
        """Build an engine of the family's own vision graph, float16."""
        spec = vision_graph(self.loaded.facts, "float16")

        def write(half: Path) -> None:
            small = compress(self.loaded, self.plan("identity"))
            with SharedWeights(half) as weights:
                tower = replace(small, vision=copy.deepcopy(small.vision).half())
                save_graph(export_vision(tower, spec), half / spec.file, weights)

        self._engine(made_once(self.place / "float16 tower", write), spec)

    def _engine(self, folder: Path, spec: GraphSpec) -> None:
        limits = limits_of(vtcompress.load_recipe("identity").export.profiles, self.loaded.facts)
        profiles = profiles_of(spec, limits)
        given = (folder / spec.file).read_bytes() + (folder / "weights.bin").read_bytes()
        key = hashlib.sha256(given + repr(profiles).encode()).hexdigest()
        maker = Maker.of(TARGETS[RTX], ("SM86",))

        def make(half: Path) -> None:
            maker.build_engine(folder / spec.file, profiles, spec, half / "engine", b"")

        engine = made_once(self.whole.place.parent / "engines" / key, make) / "engine"
        assert engine.stat().st_size > 10_000


def gate_margin(one: np.ndarray, other: np.ndarray, state: np.ndarray) -> float:
    """Return logit 1 minus logit 0 of a gate: Linear, GELU, Linear, without biases."""
    inner = one.astype(float) @ state
    logits = other @ (inner * [(1 + erf(x / sqrt(2))) / 2 for x in inner])
    return float(logits[1] - logits[0])
