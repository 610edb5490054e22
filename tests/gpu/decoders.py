"""Times compressed decoders of LLaVA-1.5-7B's shape beside the naive original, in torch on the same weights.

Random weights: times do not depend on them. Every plan's decoder holds views of the same tensors, so one
model's memory serves all. Calls run in turns, each measured by itself: CUDA events on a GPU, the clock
elsewhere.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoder_models import random_model
from compressor.decoder import Decoder, decoder_from
from compressor.facts import DecoderDims, ModelFacts
from compressor.methods import layer_scores
from compressor.methods.fastv import FastV
from compressor.methods.shortv import ShortV
from compressor.methods.visual_exit import VisualExit
from compressor.methods.yopo.method import Yopo
from compressor.plan.cost import predict, predicted_speedup
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan, Workload
from compressor.planner import make_plan
from export.graphs.spec import DType
from vtcompress import load_recipe

TEXT, KEPT_LAYERS, STD = 64, 2, 0.02
# A later turn's numbers differ between a GPU and a CPU by rounding alone; cosine of float16 rows.
LEAST_COSINE = 0.999
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Scale:
    """A model's size and the prompts that are timed.

    Attributes:
        facts: of the model.
        images: of each prompt; an image is N visual tokens.
        frozen: layers of ShortV, those that contribute least first.
        exit_layer: of VTW.
        off_from: of YOPO.
    """

    facts: ModelFacts
    images: tuple[int, ...]
    frozen: tuple[int, ...]
    exit_layer: int
    off_from: int


def scale(name: str) -> Scale:
    """Return `7b`, LLaVA-1.5-7B's dimensions, or `tiny`, for a machine without a GPU."""
    if name == "tiny":
        model = random_model(4, 64, 4, 4, 96, 100, visual=64, grid=(8, 8))
        return Scale(model, (1, 2), (3, 1), 2, 3)
    model = random_model(32, 4096, 32, 32, 11008, 32064, visual=576, grid=(24, 24))
    method = next(
        m for m in load_recipe("shortv-llava-1.5-7b").methods if isinstance(m, ShortV) and m.layers
    )
    return Scale(model, (1, 5), tuple(method.layers or ()), 16, 20)


def plans(of: Scale, images: int) -> dict[str, Plan]:
    """Return the plans that are timed; the first is the original, every row in every layer."""
    workload = Workload(images=images, text=TEXT)
    dims = of.facts.decoder
    with tempfile.TemporaryDirectory() as name:
        keep = np.zeros((dims.layers, dims.heads), bool)
        keep[:, : dims.heads // 2] = True
        keep[:KEPT_LAYERS] = True
        mask = Path(name) / "keep.npy"
        np.save(mask, keep)
        cut = {"heads": {"mask": mask}, "mlp_ratio": 2, "off_from": of.off_from}
        methods: dict[str, Any] = {
            "shortv": ShortV(layers=of.frozen),
            "vtw": VisualExit(layer=of.exit_layer),
            "yopo": Yopo.model_validate({**cut, "window": 5}),
            "yopo-no-window": Yopo.model_validate(cut),
            "fastv": FastV(layer=2, keep=0.5),
        }
        made = {
            key: make_plan(of.facts, "random", [method], workload=workload)
            for key, method in methods.items()
        }
    return {"original": identity_plan(of.facts, "random", workload).naive(), **made}


def shapes(dims: DecoderDims) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a decoder's weights, of matrices [out, in]."""
    matrices = {
        "self_attn.q_proj": (dims.query_width, dims.hidden),
        "self_attn.k_proj": (dims.kv_width, dims.hidden),
        "self_attn.v_proj": (dims.kv_width, dims.hidden),
        "self_attn.o_proj": (dims.hidden, dims.query_width),
        "mlp.gate_proj": (dims.intermediate, dims.hidden),
        "mlp.up_proj": (dims.intermediate, dims.hidden),
        "mlp.down_proj": (dims.hidden, dims.intermediate),
        "input_layernorm": (dims.hidden,),
        "post_attention_layernorm": (dims.hidden,),
    }
    ends = {"norm.weight": (dims.hidden,), "lm_head.weight": (dims.vocab, dims.hidden)}
    return ends | {
        f"layers.{i}.{name}.weight": shape
        for i in range(dims.layers)
        for name, shape in matrices.items()
    }


def weights(facts: ModelFacts, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return seeded weights [out, in], made where they are used."""
    generator = torch.Generator(device).manual_seed(0)

    def made(*shape: int) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape, device=device, dtype=dtype)
        matrix = torch.randn(shape, device=device, dtype=dtype, generator=generator)
        return matrix.mul_(STD)

    return {name: made(*shape) for name, shape in shapes(facts.decoder).items()}


class Prompt:
    """A prefill of images between two pieces of text, and the decode step behind it.

    Args:
        decoder: runs it.
        visual: V.
        seed: of the rows.
    """

    def __init__(self, decoder: Decoder, visual: int, seed: int = 0) -> None:
        weight = decoder.norm.weight
        # Drawn on the CPU, so that every device gets the same rows.
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(1, visual + TEXT, weight.shape[0], generator=generator).to(weight)
        places = torch.arange(visual + TEXT, device=weight.device)[None]
        self.decoder = decoder
        (seen, text), (seen_at, text_at) = apart(rows, visual), apart(places, visual)
        self.rows = (seen, text, seen_at, text_at)
        self.step_rows = (rows[:, :0], rows[:, :1], places[:, :0], places[:, -1:] + 1)
        self.past: list[Any] = []
        # In this process's memory, where it is looked at.
        self.logits = self.prefill().float().cpu()

    @torch.inference_mode()
    def prefill(self) -> Tensor:
        """Run the prompt and keep its caches; return the logits."""
        logits, self.past = self.decoder(*self.rows, self.decoder.empty_past(1))
        return logits

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Run one decode step on the prompt's caches; return the logits."""
        logits, _ = self.decoder(*self.step_rows, self.past)
        return logits

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values behind the prompt."""
        pairs = (item for item in self.past if isinstance(item, tuple))
        return sum(tensor.nbytes for pair in pairs for tensor in pair)


def apart(rows: Tensor, visual: int) -> tuple[Tensor, Tensor]:
    """Return the visual rows [1, V, ...] and the text rows of a prompt: one text row stands in front."""
    text = torch.cat([rows[:, :1], rows[:, 1 + visual :]], dim=1)
    return rows[:, 1 : 1 + visual].contiguous(), text


def in_turns(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Return milliseconds of every call, one a round; each round begins with the next call.

    Args:
        calls: what to time, by name; each ran before.
        device: where they run.
        rounds: at most.
        seconds: after which no new round begins, but three there are.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names, start = list(calls), time.perf_counter()
    for turn in range(rounds + 1):
        if turn > LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            spent = _milliseconds(calls[name], device)
            if turn:  # the first round warms up
                taken[name].append(spent)
    return taken


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


@dataclass(frozen=True)
class Ratio:
    """Original / plan, of the rounds: median and quartiles; and the plan's own median in milliseconds."""

    ms: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One plan with one prompt.

    Attributes:
        visual: V.
        plan: its name.
        predicted: original / plan in FLOPs of the prefill.
        prefill, step: times; None: not timed.
        kv_bytes: measured behind the prefill.
        kv_predicted: what `cost.predict` says of it.
        kv_original: what it says of the original.
        peak_bytes: of the prefill beside the weights; None: not known off a GPU.
        finite: whether all logits are numbers.
    """

    visual: int
    plan: str
    predicted: float
    prefill: Ratio
    step: Ratio
    kv_bytes: int
    kv_predicted: int
    kv_original: int
    peak_bytes: int | None
    finite: bool

    @property
    def right(self) -> bool:
        """Whether nothing about it is wrong: numbers, and caches of the predicted size."""
        return self.finite and self.kv_bytes == self.kv_predicted


def ratios(taken: Mapping[str, list[float]]) -> dict[str, Ratio]:
    """Return each call's times beside the first one's, round by round."""
    base = next(iter(taken.values()))
    found = {}
    for name, own in taken.items():
        shares = [a / b for a, b in zip(base, own, strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4, method="inclusive")
        found[name] = Ratio(statistics.median(own), middle, low, high)
    return found


How = Literal["eager", "one CUDA graph a call", "torch.compile"]
"""How torch runs a decoder: kernel by kernel; recorded once and played again; compiled."""


def measure(
    of: Scale, device: torch.device, rounds: int, seconds: float, how: How = "eager"
) -> list[Row]:
    """Time every plan on every prompt.

    Args:
        of: what is timed.
        device: where.
        rounds: of each call at most.
        seconds: of the rounds of one kind of call and one prompt.
        how: torch runs them; compiled ones for the first prompt alone.
    """
    name: DType = "float16" if device.type == "cuda" else "float32"
    tensors = weights(of.facts, device, getattr(torch, name))
    rows = []
    for images in of.images[:1] if how == "torch.compile" else of.images:
        made = plans(of, images)
        prompts: dict[str, Timed] = {}
        peaks = {}
        for key, plan in made.items():
            decoder: Any = decoder_from(plan, tensors, scores=layer_scores(plan))
            if how == "torch.compile":
                decoder.forward = torch.compile(decoder.forward, dynamic=False)
            prompt, peaks[key] = _first(decoder, plan.visual, device)
            prompts[key] = Recorded(prompt) if how == "one CUDA graph a call" else prompt
        rows += timed(made, prompts, device, rounds, seconds, name, peaks)
        del prompts
        gc.collect()
    return rows


class Recorded:
    """A prompt whose calls are CUDA graphs: the GPU does not wait for Python to start each kernel.

    What is left are the kernels' own times, which is nearer to an engine's.

    Args:
        prompt: that ran once.
    """

    def __init__(self, prompt: Prompt) -> None:
        self.logits, self.kv_bytes = prompt.logits, prompt.kv_bytes
        self.prefill, self.step = recorded(prompt.prefill), recorded(prompt.step)
        self._prompt = prompt  # its caches are the steps' inputs


def recorded(call: Callable[[], object]) -> Callable[[], None]:
    """Return what plays a call's kernels again."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    play: Callable[[], None] = graph.replay
    return play


class Timed(Protocol):
    """What is timed: a prefill, and a decode step behind it.

    Attributes:
        logits: of the prefill.
    """

    logits: Any

    def prefill(self) -> Any:
        """Run the prompt."""
        ...

    def step(self) -> Any:
        """Run one decode step."""
        ...

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values behind the prompt."""
        ...


def timed(
    made: Mapping[str, Plan],
    prompts: Mapping[str, Timed],
    device: torch.device,
    rounds: int,
    seconds: float,
    dtype: DType,
    peaks: Mapping[str, int | None] = MappingProxyType({}),
) -> list[Row]:
    """Time prompts of one length in turns.

    Args:
        made: the plans by name, the original first.
        prompts: the same, ready to run.
        device: whose clock.
        rounds: of each call at most.
        seconds: of the rounds of one kind of call.
        dtype: of keys and values.
        peaks: bytes that prefills took, where it is known.
    """
    prefill = in_turns({k: p.prefill for k, p in prompts.items()}, device, rounds, seconds)
    steps = in_turns({k: p.step for k, p in prompts.items()}, device, 4 * rounds, seconds)
    ahead, behind = ratios(prefill), ratios(steps)
    return [
        Row(
            visual=plan.visual,
            plan=name,
            predicted=predicted_speedup(plan),
            prefill=ahead[name],
            step=behind[name],
            kv_bytes=prompts[name].kv_bytes,
            kv_predicted=predict(plan).kv_bytes(dtype),
            kv_original=predict(plan.naive()).kv_bytes(dtype),
            peak_bytes=peaks.get(name),
            finite=bool(np.isfinite(np.asarray(prompts[name].logits, np.float32)).all()),
        )
        for name, plan in made.items()
    ]


def _first(decoder: Decoder, visual: int, device: torch.device) -> tuple[Prompt, int | None]:
    """Run a prompt for the first time; return it with the memory that its prefill took at its highest."""
    if device.type != "cuda":
        return Prompt(decoder, visual), None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    prompt = Prompt(decoder, visual)
    torch.cuda.synchronize()
    return prompt, torch.cuda.max_memory_allocated() - before


def agreement(device: torch.device) -> dict[str, float]:
    """Return each plan's least cosine between its logits on the device and those of float32 on the CPU.

    Of the tiny scale: prefill, decode step, and a prompt of text alone, in float16 on a GPU.
    """
    of = scale("tiny")
    exact = weights(of.facts, torch.device("cpu"), torch.float32)
    # Larger than what is timed: with small weights a wrong layer changes nothing that shows.
    exact = {n: t if "norm" in n else t * (0.2 / STD) for n, t in exact.items()}
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    moved = {name: tensor.to(device, dtype) for name, tensor in exact.items()}
    found = {}
    for name, plan in plans(of, 2).items():
        if name == "fastv":  # scores that are nearly equal choose other rows in float16
            continue
        sides = [decoder_from(plan, tensors, logits="all") for tensors in (exact, moved)]
        outputs = []
        for side in sides:
            seen, text = Prompt(side, plan.visual), Prompt(side, 0)
            outputs.append([seen.logits, seen.step(), text.logits])
        found[name] = min(
            float(torch.cosine_similarity(a.double(), b.cpu().double(), dim=-1).min())
            for a, b in zip(*outputs, strict=True)
        )
    return found


COLUMNS = (
    "visual tokens",
    "plan",
    "prefill ms",
    "original / plan (quartiles)",
    "predicted",
    "decode ms",
    "original / plan",
    "KV MB",
    "of the original's",
    "peak MB",
)


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [" | ".join(("", *COLUMNS, "")).strip(), "|" + "---|" * len(COLUMNS)]
    for row in rows:
        p, s = row.prefill, row.step
        cells = (
            f"{row.visual:,}",
            row.plan,
            f"{p.ms:.2f}",
            f"{p.ratio:.2f} ({p.low:.2f} to {p.high:.2f})",
            f"{row.predicted:.2f}",
            f"{s.ms:.2f}",
            f"{s.ratio:.2f} ({s.low:.2f} to {s.high:.2f})",
            f"{row.kv_bytes / 1e6:,.1f}",
            f"{row.kv_bytes / row.kv_original:.0%}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
