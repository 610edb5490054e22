"""What is compared: who makes each decoder, and what runs it. Each is made in a process of its own.

A maker is called with a folder that holds the model as `hugging_face`, and with layers and vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.decoder_models import (
    GENAI_FILE,
    GENAI_FOLDER,
    VISUAL,
    build_genai,
    facts,
    plans,
    random_weights,
    save_hugging_face,
)
from benchmarks.peers.exporters import Exporter, decoder_sample, export
from compressor.plan.edits import keep_in_front
from compressor.plan.plan import Plan

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Runs = Literal["onnxruntime", "openvino", "openvino f32", "torch"]
HUGGING_FACE = "hugging_face"
BLOCK = 32
KEPT = VISUAL // 2
IDENTITY = "identity"
PLANS = (IDENTITY, "frozen", "half")


@dataclass(frozen=True)
class Contender:
    """One decoder in one runtime.

    Attributes:
        name: of it.
        made: name of the folder that holds it; two that run the same files share one.
        make: its maker.
        file: that is run, relative to the folder; or the folder that holds all files that are.
        runs: the runtime; OpenVINO with its own choice of precision, or in f32.
        plan: ours; None: somebody else's.
        whole_numbers: whether weights are rounded to int4.
    """

    name: str
    made: str
    make: Callable[[Path, int, int], None]
    file: str
    runs: Runs = "onnxruntime"
    plan: str | None = None
    whole_numbers: bool = False

    @property
    def kept(self) -> int | None:
        """How many visual rows the decoder gets; None: all."""
        return KEPT if self.plan == "half" else None

    @property
    def changes(self) -> str | None:
        """The plan that changes what a picture's logits are; None: none does."""
        return None if self.plan == IDENTITY else self.plan

    @property
    def exact(self) -> bool:
        """Whether its logits are to be those that are expected, but for rounding of float32."""
        return not self.whole_numbers and self.runs != "openvino"

    def size(self, folder: Path) -> int:
        """Return the bytes of its files: graph and weights."""
        place = folder / self.file
        files = place.rglob("*") if place.is_dir() else place.parent.iterdir()
        return sum(f.stat().st_size for f in files if f.is_file() and f.suffix != ".json")


def our_plans(layers: int, vocab: int) -> dict[str, Plan]:
    """Return the plans by name: `identity`, `frozen`, and `half`, which gets half of the rows as well."""
    found = plans(layers, vocab)
    return {**found, "half": keep_in_front(found["frozen"], KEPT, "random", {"keep": 0.5})}


def contenders() -> tuple[Contender, ...]:
    """Return all, the reference first."""
    genai, exported = f"{GENAI_FOLDER}/{GENAI_FILE}", "exported/model.onnx"
    by_openvino = "exported/openvino_model.xml"
    by_transformers = partial(_transformers, "openvino")
    return (
        Contender("genai", "genai", partial(_genai, "fp32"), genai),
        Contender("genai, int4", "genai-int4", partial(_genai, "int4"), genai, whole_numbers=True),
        Contender("transformers, ONNX", "onnx", partial(_transformers, "onnx"), exported),
        Contender("transformers, ONNX fused", "fused", partial(_transformers, "fused"), exported),
        Contender("transformers, OpenVINO", "openvino", by_transformers, by_openvino, "openvino"),
        Contender(
            "transformers, OpenVINO f32", "openvino", by_transformers, by_openvino, "openvino f32"
        ),
        Contender("torch, eager", "torch", _torch, HUGGING_FACE, "torch"),
        *ours(_ours, "{plan}.onnx"),
    )


def ours(make: Callable[[str, str, Path, int, int], None], file: str) -> list[Contender]:
    """Return this project's: every plan, float and int4, in both runtimes.

    Args:
        make: writes one, by the names of its plan and of its kind of weights.
        file: that is run, with `{plan}` for the plan's name.
    """
    return [
        Contender(
            f"{plan}{', int4' if kind == 'int4' else ''}, {title}",
            f"{plan}-{kind}",
            partial(make, plan, kind),
            file.format(plan=plan),
            runs,
            plan,
            kind == "int4",
        )
        for runs, title in OURS_RUN
        for kind in ("float", "int4")
        for plan in PLANS
    ]


OURS_RUN: tuple[tuple[Runs, str], ...] = (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO"))


def make_model(folder: Path, layers: int, vocab: int) -> None:
    """Write the model that every contender is made of."""
    dims = facts(layers, vocab).decoder
    save_hugging_face(folder / HUGGING_FACE, dims, random_weights(dims))


def load_torch(folder: Path) -> "LlamaForCausalLM":
    """Return the model in torch, float32."""
    from transformers import LlamaForCausalLM

    found: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder / HUGGING_FACE).eval()
    return found


def _ours(name: str, kind: str, folder: Path, layers: int, vocab: int) -> None:
    from safetensors.torch import load_file

    from compressor.decoder import decoder_from
    from compressor.schema.sections import ExportSection
    from export.graphs.spec import decoder_graph
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    plan = our_plans(layers, vocab)[name]
    read = load_file(folder / HUGGING_FACE / "model.safetensors")
    tensors = {key.removeprefix("model."): tensor for key, tensor in read.items()}
    settings = ExportSection.model_validate(
        {"weights": kind} | ({"block": BLOCK} if kind == "int4" else {})
    )
    spec = decoder_graph(plan, "float32", "last", name=name)
    with SharedWeights(folder) as weights:
        made = export_decoder(decoder_from(plan, tensors, logits="last"), spec, None, settings)
        save_graph(made, folder / spec.file, weights)


def _genai(precision: str, folder: Path, layers: int, vocab: int) -> None:  # noqa: ARG001 - in the folder
    build_genai(folder, precision)


def _torch(folder: Path, layers: int, vocab: int) -> None:
    """Do nothing: torch reads the model's folder."""


def _transformers(kind: Exporter, folder: Path, layers: int, vocab: int) -> None:  # noqa: ARG001 - in the folder
    llama = load_torch(folder)
    export(kind, llama, decoder_sample(llama.config), folder / "exported")
