"""onnxruntime-genai: model type `phi3v`, which runs vision, embedding and decoder one after another.

It has no type for these models, and its picture processors do not fit: prompts come from `PromptMaker`.

Limitations:
    - Caches behind an exit are as large as without it; see `export.clients.caches`.
    - `Generator.rewind_to` does not work on them; begin a new `Generator`.
    - `Generator.append_tokens` behind an answer (0.18.0) leaves out the answer's last token, with any caches:
      a further turn is the whole conversation anew.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from export.clients.client import Answered, CheckQuestion, Client
from export.clients.packing import Packing
from export.clients.preparing import PreparedPrompt, PromptMaker
from export.clients.rows import chooses, rows_refused

if TYPE_CHECKING:
    import onnx_ir as ir

    from export.artifact.artifact import Artifact

MODEL_TYPE = "phi3v"
WEIGHTS = "weights.bin"
FILES = {name: f"{name}.onnx" for name in ("vision", "embed", "decoder")}


class OnnxRuntimeGenai(Client):
    """The client `onnxruntime-genai`."""

    name: ClassVar[str] = "onnxruntime-genai"

    def refuses(self, artifact: "Artifact") -> list[str]:
        """See `Client.refuses`."""
        manifest = artifact.manifest
        reasons = rows_refused(artifact)
        if manifest.dtype == "bfloat16":
            reasons.append(
                "runs on ONNX Runtime, whose CPU has no bfloat16 kernels; export with dtype float16 or "
                "float32"
            )
        return reasons

    def write(self, packing: Packing, folder: Path) -> None:
        """See `Client.write`."""
        graphs = {
            folder / FILES["vision"]: _vision(packing),
            folder / FILES["embed"]: _embedding(packing),
            folder / FILES["decoder"]: _decoder(packing),
        }
        packing.save(graphs, folder / WEIGHTS)
        packing.copy(folder)
        config = json.dumps(_config(packing), indent=1) + "\n"
        (folder / "genai_config.json").write_text(config, encoding="utf-8")

    def readme(self, packing: Packing) -> str:
        """See `Client.readme`."""
        return f"""# {packing.facts.name} for onnxruntime-genai

Written by `vtcompress pack --for onnxruntime-genai`. `pip install onnxruntime-genai` runs it. Its own picture
processors do not fit this model, so pictures and prompt are made by vtcompress, which needs neither torch nor
transformers for it.

```python
import onnxruntime_genai as og
from export.clients.preparing import PromptMaker

maker = PromptMaker.load(".")
model = og.Model(".")
prompt = maker.question("What is this?", "photo.jpg")
inputs = og.NamedTensors()
inputs["input_ids"] = prompt.input_ids
inputs["pixel_values"] = prompt.pixel_values  # leave these two out without a picture
inputs["num_image_tokens"] = prompt.image_tokens
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=prompt.input_ids.shape[1] + 64, do_sample=False)
generator = og.Generator(model, parameters)
generator.set_inputs(inputs)
ids = []
while not generator.is_done():
    generator.generate_next_token()
    ids.append(int(generator.get_next_tokens()[0]))
print(maker.decode(ids))
```

One prompt at a time. Pictures stand in front of their question, several as a list. For a further turn give a
new generator the whole conversation, `maker.conversation(messages, pictures)`; do not rewind one or append
tokens.
"""

    def check(
        self, packing: Packing, folder: Path, questions: Sequence[CheckQuestion]
    ) -> list[Answered] | str:
        """See `Client.check`."""
        del packing
        if find_spec("onnxruntime_genai") is None:
            return "onnxruntime-genai is not installed"
        genai = import_module("onnxruntime_genai")
        genai.disable_telemetry_events()
        maker, model = PromptMaker.load(folder), genai.Model(str(folder))
        found = []
        for one in questions:
            prompt = maker.question(one.question, one.images)
            ids = generated(genai, model, prompt, one.max_new_tokens)
            found.append(Answered(maker.decode(ids), tuple(prompt.input_ids[0].tolist())))
        return found


def _vision(packing: Packing) -> "ir.Model":
    """Return pixels [I, 3, H, W] to marked rows [I * N, D + 1]."""
    import onnx_ir as ir

    from export.clients.marker import mark_visual
    from export.clients.surgery import Nodes, replace_output

    spec, model = packing.spec("vision"), packing.graph("vision")
    mark_visual(model, spec, packing.facts.tile_rows)
    nodes, rows = Nodes(model.graph, "flat"), model.graph.outputs[0]
    width = packing.facts.decoder.hidden + 1
    flat = nodes("Reshape", rows, nodes.numbers(-1, width))
    flat.shape = ir.Shape(("rows", width))
    replace_output(model.graph, rows, flat)
    nodes.behind()
    return model


def _embedding(packing: Packing) -> "ir.Model":
    """Return token ids [1, S] and marked rows [V, D + 1] to what the decoder reads, [1, S, D + 1].

    An image token that the model itself wrote has no row: it stays the token's embedding.
    """
    import numpy as np

    from export.clients.marker import mark_text
    from export.clients.surgery import Nodes, port, replace_output

    spec, model = packing.spec("embed"), packing.graph("embed")
    mark_text(model, spec)
    graph = model.graph
    nodes, merged = Nodes(graph, "merge"), graph.outputs[0]
    width = packing.facts.decoder.hidden + 1
    features = port("image_features", spec.outputs[0].dtype, ("rows", width))
    ids = next(value for value in graph.inputs if value.name == spec.inputs[0].name)
    image = nodes.constant(np.array(packing.facts.image_token_id, np.int64))
    where = nodes("Transpose", nodes("NonZero", nodes("Equal", ids, image)), perm=[1, 0])
    own = nodes("GatherND", merged, where)
    rows = nodes("Concat", features, own, axis=0)
    rows = nodes("Slice", rows, nodes.numbers(0), nodes.size(where, 0), nodes.numbers(0))
    graph.inputs.append(features)
    result = nodes("ScatterND", merged, where, rows)
    result.shape = merged.shape
    replace_output(graph, merged, result)
    nodes.behind()
    return model


def _decoder(packing: Packing) -> "ir.Model":
    """Return the decoder with inputs and caches as the client counts them."""
    from export.clients.caches import LayerCaches, short_lengths
    from export.clients.marker import last_logits, take_apart

    spec, model = packing.spec("decoder"), packing.graph("decoder")
    short = short_lengths(spec, chooses=chooses(packing))
    take_apart(model, spec)
    LayerCaches(model, spec, packing.facts.decoder.kv_heads, short).replace()
    last_logits(model, spec)
    return model


def _config(packing: Packing) -> dict[str, Any]:
    facts, generation = packing.facts, packing.settings("generation_config.json")
    dims, ends = facts.decoder, list(facts.eos_token_ids)
    pad = generation.get("pad_token_id")
    first = ends[0] if ends else 0
    names = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    given = {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    session = {"log_id": "onnxruntime-genai", "provider_options": []}
    return {
        "model": {
            "type": MODEL_TYPE,
            "vocab_size": dims.vocab,
            "context_length": dims.max_positions,
            "bos_token_id": generation.get("bos_token_id", first),
            "eos_token_id": ends,
            "pad_token_id": first if pad is None else pad,
            "decoder": {
                "session_options": session,
                "filename": FILES["decoder"],
                "hidden_size": dims.hidden + 1,
                "head_size": dims.head_dim,
                "num_attention_heads": dims.heads,
                "num_key_value_heads": dims.kv_heads,
                "num_hidden_layers": dims.layers,
                "inputs": {
                    "inputs_embeds": "inputs_embeds",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    **names,
                },
                "outputs": {"logits": "logits", **given},
            },
            "vision": {
                "filename": FILES["vision"],
                "inputs": {"pixel_values": "pixel_values"},
                "outputs": {"image_features": "image_features"},
            },
            "embedding": {
                "filename": FILES["embed"],
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"},
            },
        },
        "search": {
            "do_sample": False,
            "max_length": dims.max_positions,
            "past_present_share_buffer": False,
        },
    }


def generated(genai: Any, model: Any, prompt: PreparedPrompt, most: int) -> list[int]:
    """Return the token ids of the greedy answer.

    Args:
        genai: the client's module.
        model: a packed folder's, loaded by it.
        prompt: a whole one.
        most: tokens at most.
    """
    inputs = genai.NamedTensors()
    inputs["input_ids"] = prompt.input_ids
    if len(prompt.pixel_values):
        inputs["pixel_values"] = prompt.pixel_values
        inputs["num_image_tokens"] = prompt.image_tokens
    parameters = genai.GeneratorParams(model)
    length = prompt.input_ids.shape[1] + most
    parameters.set_search_options(max_length=length, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.set_inputs(inputs)
    ids: list[int] = []
    while len(ids) < most and not generator.is_done():
        generator.generate_next_token()
        ids.append(int(generator.get_next_tokens()[0]))
    return ids
