"""Builds the decoder benchmark's graphs, all on one set of random weights.

Runs in processes of its own, so that torch, its threads and its memory are gone before anything is
timed.
"""

import argparse
import contextlib
import io
import logging
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from compressor.facts import DecoderDims, ModelFacts
from compressor.plan.edits import freeze, identity_plan
from compressor.plan.plan import Plan, Workload

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 896, 14, 2, 64, 4864
VISUAL, TEXT = 729, 64
ROPE_THETA = 10_000.0
MAX_POSITIONS = 2048
RMS_NORM_EPS = 1e-6
FROZEN_SHARE = 14 / 24

Result = TypeVar("Result")

GENAI_FOLDER = "genai"
GENAI_FILE = "model.onnx"


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add the options for the size of the model."""
    parser.add_argument("--layers", type=int, default=24, help="fewer for a quick try (default 24)")
    parser.add_argument("--vocab", type=int, default=32_000, help="default 32000")


def plans(layers: int, vocab: int) -> dict[str, Plan]:
    """Return the plans to compare, by the name of their graph."""
    identity = identity_plan(facts(layers, vocab), "random", Workload(text=TEXT))
    count = round(FROZEN_SHARE * layers)
    return {
        "identity": identity,
        "naive": identity.naive(),
        "frozen": freeze(identity, range(layers - count, layers), "shortv"),
    }


def build(folder: Path, layers: int, vocab: int) -> dict[str, Path]:
    """Write all graphs into the folder and return their files by name; `genai` is the last one."""
    files = {name: folder / f"{name}.onnx" for name in plans(layers, vocab)}
    in_own_process(_build_ours, folder, layers, vocab)
    in_own_process(build_genai, folder)
    return {**files, "genai": folder / GENAI_FOLDER / GENAI_FILE}


def in_own_process(work: Callable[..., Result], *args: object) -> Result:
    """Run a function in a fresh process and return what it returns."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def facts(layers: int, vocab: int) -> ModelFacts:
    """Return a model of the benchmark's widths."""
    return random_model(layers, HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, vocab, visual=VISUAL)


def random_model(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocab: int,
    *,
    visual: int,
    grid: tuple[int, int] | None = None,
) -> ModelFacts:
    """Return the facts of a Llama-like decoder that random weights are made for."""
    size = hidden // heads
    return ModelFacts(
        name="random",
        family="none",
        architecture="Llama",
        decoder=DecoderDims(
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            intermediate=intermediate,
            vocab=vocab,
            rms_norm_eps=RMS_NORM_EPS,
            rope_inv_freq=tuple(ROPE_THETA ** (-2 * i / size) for i in range(size // 2)),
            max_positions=MAX_POSITIONS,
        ),
        visual_tokens=visual,
        image_size=1,
        image_token_id=0,
        token_grid=grid,
        eos_token_ids=(),
        dtype="float32",
    )


def random_weights(dims: DecoderDims) -> "dict[str, Tensor]":
    """Return weights [out, in] of unit gain: no layer's part in the logits is lost in rounding."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> "Tensor":
        return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)

    def norm() -> "Tensor":
        return 1 + 0.1 * torch.randn(dims.hidden, generator=generator)

    weights = {
        "embed_tokens.weight": matrix(dims.vocab, dims.hidden),
        "norm.weight": norm(),
        "lm_head.weight": matrix(dims.vocab, dims.hidden),
    }
    for i in range(dims.layers):
        weights |= {
            f"layers.{i}.input_layernorm.weight": norm(),
            f"layers.{i}.self_attn.q_proj.weight": matrix(dims.query_width, dims.hidden),
            f"layers.{i}.self_attn.k_proj.weight": matrix(dims.kv_width, dims.hidden),
            f"layers.{i}.self_attn.v_proj.weight": matrix(dims.kv_width, dims.hidden),
            f"layers.{i}.self_attn.o_proj.weight": matrix(dims.hidden, dims.query_width),
            f"layers.{i}.post_attention_layernorm.weight": norm(),
            f"layers.{i}.mlp.gate_proj.weight": matrix(dims.intermediate, dims.hidden),
            f"layers.{i}.mlp.up_proj.weight": matrix(dims.intermediate, dims.hidden),
            f"layers.{i}.mlp.down_proj.weight": matrix(dims.hidden, dims.intermediate),
        }
    return weights


def _build_ours(folder: Path, layers: int, vocab: int) -> None:
    from compressor.decoder import decoder_from
    from export.graphs.spec import decoder_graph
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    wanted = plans(layers, vocab)
    dims = wanted["identity"].model.decoder
    tensors = random_weights(dims)
    save_hugging_face(folder / "hugging_face", dims, tensors)
    with SharedWeights(folder) as weights:
        for name, plan in wanted.items():
            decoder = decoder_from(plan, tensors, logits="last")
            spec = decoder_graph(plan, "float32", "last", name=name)
            save_graph(export_decoder(decoder, spec), folder / spec.file, weights)


def save_hugging_face(folder: Path, dims: DecoderDims, tensors: "dict[str, Tensor]") -> None:
    """Write the model as a folder that transformers reads."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder.mkdir()
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=dims.vocab,
        hidden_size=dims.hidden,
        intermediate_size=dims.intermediate,
        num_hidden_layers=dims.layers,
        num_attention_heads=dims.heads,
        num_key_value_heads=dims.kv_heads,
        head_dim=dims.head_dim,
        max_position_embeddings=dims.max_positions,
        rms_norm_eps=dims.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=False,
        dtype="float32",
    )
    config.save_pretrained(folder)
    named = {
        name if name.startswith("lm_head") else f"model.{name}": tensor
        for name, tensor in tensors.items()
    }
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    # genai's builder wants a tokenizer beside the weights; no text is ever tokenized.
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def build_genai(folder: Path, precision: str = "fp32") -> None:
    """Run onnxruntime-genai's model builder as its own users would, embeddings as input.

    Args:
        folder: that holds the model in `hugging_face`, and gets the graph in `genai`.
        precision: by the builder's word.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    logging.disable(logging.WARNING)
    source, target, cache = (str(folder / name) for name in ("hugging_face", GENAI_FOLDER, "cache"))
    # Like our graphs: embeddings in, logits of the last row out.
    asked = ["exclude_embeds=true", "prune_lm_head=true", "hf_token=false"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        options = parse_extra_options("", source, target, precision, "cpu", cache, asked)
        create_model("", source, target, precision, "cpu", cache, **options)
