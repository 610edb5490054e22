"""openvino.genai: a folder of IR that `VLMPipeline` loads; it reads chat template and pictures by itself.

Limitations:
    - Of the pictures' steps it knows those of CLIP, and its resizing is Pillow's but for a level of 255 in
      some pictures. So the README's code hands it pictures that are resized and cropped already, which it
      leaves as they are.
    - It runs in bfloat16 where the processor has that, unless it is asked for float32, which the README does.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from compressor.families.pictures.steps import Crop, Normalise, Rescale, ResizeShorter
from compressor.families.pictures.text import TextRun
from compressor.samples.pictures import load_image
from export.clients.client import Answered, CheckQuestion, Client
from export.clients.openvino_pixels import PixelProbe, largest_difference
from export.clients.packing import TOKENIZER_FILES, Packing
from export.clients.preparing import PromptMaker, beginning_written
from export.clients.rows import INSTEAD, rows_refused
from export.graphs.spec import WEIGHTS_FILE
from export.session.arrays import Array

if TYPE_CHECKING:
    import onnx_ir as ir

    from export.artifact.artifact import Artifact

MODEL_TYPES: Mapping[str, str] = {"llava": "llava", "vipllava": "llava"}
"""What the client calls a family's models."""
IMAGE = "<image>"
PREFIX = f"{IMAGE}\n"
"""What the client writes in front of a question for each picture."""
PROBED = 2
"""Of the questions, those whose pixels are measured: each takes a model of its own."""
PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}
LANGUAGE, TEXT, VISION = (
    f"openvino_{name}_model" for name in ("language", "text_embeddings", "vision_embeddings")
)


class OpenVinoGenai(Client):
    """The client `openvino.genai`."""

    name: ClassVar[str] = "openvino.genai"
    copies: ClassVar[int] = 2
    packages: ClassVar[tuple[str, ...]] = (
        "onnx_ir",
        "openvino",
        "openvino_tokenizers",
        "transformers",
    )

    def refuses(self, artifact: "Artifact") -> list[str]:
        """See `Client.refuses`."""
        manifest, reasons = artifact.manifest, []
        if manifest.model.family not in MODEL_TYPES:
            reasons.append(
                f"does not take pictures as models of the family {manifest.model.family} do; packed for "
                f"it are {', '.join(MODEL_TYPES)}; {INSTEAD}"
            )
        reasons += rows_refused(artifact)
        form = manifest.picture_form
        if _clip_steps(form.steps) is None:
            reasons.append(
                "resizes the shorter side of a picture by a bicubic filter and crops the centre, and this "
                f"model's pictures are made otherwise; {INSTEAD}"
            )
        if form.token != IMAGE or not isinstance(form.text, TextRun):
            reasons.append(
                f"writes {IMAGE!r} for each of a picture's rows and nothing around them; {INSTEAD}"
            )
        if manifest.dtype != "float32":
            reasons.append(
                f"hands on rows in float32, and of {manifest.dtype} graphs its answers are not to be relied "
                "on; export with dtype float32"
            )
        return reasons

    def write(self, packing: Packing, folder: Path) -> None:
        """See `Client.write`."""
        # OpenVINO reads ONNX files with their weights beside them, and follows no links.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx-") as given:
            graphs = {Path(given) / f"{name}.onnx": g for name, g in _graphs(packing).items()}
            packing.save(graphs, Path(given) / WEIGHTS_FILE)
            for file in graphs:
                packing.progress.say(f"converting {file.stem}")
                _convert(file, folder)
        packing.copy(folder)
        _write_tokenizers(packing, folder)
        for name, content in _settings(packing).items():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def readme(self, packing: Packing) -> str:
        """See `Client.readme`."""
        size, crop, *_ = _steps_of(packing)
        return f"""# {packing.facts.name} for openvino.genai

Written by `vtcompress pack --for openvino.genai`. `pip install openvino-genai pillow` runs it.

```python
import numpy as np
import openvino_genai
from openvino import Tensor
from PIL import Image

pipeline = openvino_genai.VLMPipeline(".", "CPU", INFERENCE_PRECISION_HINT="f32")
image = Image.open("photo.jpg").convert("RGB")
short, (height, width) = {size.edge}, {crop.size}  # the client's own resizing may be off by a level
large = int(short * max(image.size) / min(image.size))
image = image.resize((short, large) if image.width <= image.height else (large, short), Image.BICUBIC)
left, top = (image.width - width) // 2, (image.height - height) // 2
picture = Tensor(np.array(image.crop((left, top, left + width, top + height))))
print(pipeline.generate("What is this?", images=[picture], max_new_tokens=64, do_sample=False))
```

Without the hint a processor that has bfloat16 computes in it, and some answers may differ. Several pictures
are a longer list. A chat is a `ChatHistory` in the place of the question, with the pictures of its last turn.
"""

    def check(
        self, packing: Packing, folder: Path, questions: Sequence[CheckQuestion]
    ) -> list[Answered] | str:
        """See `Client.check`."""
        try:
            genai = import_module("openvino_genai")
        except ImportError:
            return "openvino-genai is not installed"
        tensor = import_module("openvino").Tensor
        pipeline = genai.VLMPipeline(str(folder), "CPU", **PRECISE)
        tokenizer = pipeline.get_tokenizer()
        found = []
        for number, one in enumerate(questions):
            pictures = [tensor(_fitted(packing, path)) for path in one.images]
            options = {"max_new_tokens": one.max_new_tokens, "do_sample": False}
            told = pipeline.generate(one.question, images=pictures, **options)
            ids = _prompt_ids(tokenizer, one, packing.facts.tile_rows)
            off = None
            if pictures and number < PROBED:
                off = largest_difference(
                    folder, one.question, pictures, _probe(packing, folder, one)
                )
            found.append(Answered(str(told.texts[0]), ids, pixels_off=off))
        return found


def _probe(packing: Packing, folder: Path, one: CheckQuestion) -> PixelProbe:
    """Return what the client's pixels are to be."""
    prompt = PromptMaker.load(folder).question(one.question, one.images)
    *_, rescale, normal = _steps_of(packing)
    return PixelProbe(
        ids=prompt.input_ids[0].tolist(),
        image_token=packing.facts.image_token_id,
        pixels=prompt.pixel_values.astype(np.float32),
        level=rescale.factor / max(normal.std),
        vocab=packing.facts.decoder.vocab,
    )


def _clip_steps(
    steps: Sequence[Any] | None,
) -> tuple[ResizeShorter, Crop, Rescale, Normalise] | None:
    """Return the steps that the client runs; None: a model's pictures are made by others."""
    match tuple(steps or ()):
        case (ResizeShorter() as size, Crop() as crop, Rescale() as rescale, Normalise() as normal):
            return (size, crop, rescale, normal) if size.resample == "bicubic" else None
    return None


def _steps_of(packing: Packing) -> tuple[ResizeShorter, Crop, Rescale, Normalise]:
    steps = _clip_steps(packing.manifest.picture_form.steps)
    if steps is None:
        raise RuntimeError("the pictures' steps were not looked at")
    return steps


def _fitted(packing: Packing, file: Path) -> Array:
    """Return a picture [H, W, 3] as the README's code hands it to the client."""
    size, crop, *_ = _steps_of(packing)
    image, (height, width) = load_image(file), crop.size
    large = int(size.edge * max(image.size) / min(image.size))
    sides = (size.edge, large) if image.width <= image.height else (large, size.edge)
    image = image.resize(sides, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.array(image.crop((left, top, left + width, top + height)))


def _prompt_ids(tokenizer: Any, one: CheckQuestion, rows: int) -> tuple[int, ...]:
    """Return a prompt's tokens by the client's own template and tokenizer, pictures expanded as it does."""
    content = PREFIX * len(one.images) + one.question
    turn = {"role": "user", "content": content}
    text = tokenizer.apply_chat_template([turn], add_generation_prompt=True)
    expanded = text.replace(IMAGE, IMAGE * rows)
    ids = tokenizer.encode(expanded, add_special_tokens=False).input_ids
    return tuple(int(one) for one in ids.data[0])


def _graphs(packing: Packing) -> dict[str, "ir.Model"]:
    """Return the three graphs with the names that the client asks for."""
    from export.clients.marker import last_logits, mark_text, mark_visual, take_apart
    from export.clients.surgery import Nodes, port, replace_output

    vision, text, language = (packing.graph(name) for name in ("vision", "embed", "decoder"))
    mark_visual(vision, packing.spec("vision"), packing.facts.tile_rows)
    vision.graph.outputs[0].name = "last_hidden_state"
    mark_text(text, packing.spec("embed"))
    text.graph.inputs[0].name = "input"
    spec = packing.spec("decoder")
    take_apart(language, spec)
    last_logits(language, spec)
    # The client needs the port, which this graph has no use for.
    nodes = Nodes(language.graph, "mask")
    mask = port("attention_mask", "int64", (spec.inputs[0].axes[0], "total"))
    language.graph.inputs.insert(2, mask)
    nothing = nodes("Mul", nodes("ReduceSum", mask, keepdims=0), nodes.numbers(0))
    logits = language.graph.outputs[0]
    alive = nodes("Add", logits, nodes("Cast", nothing, to=logits.dtype))
    replace_output(language.graph, logits, alive)
    nodes.behind()
    return {VISION: vision, TEXT: text, LANGUAGE: language}


def _convert(onnx: Path, folder: Path) -> None:
    """Write a graph as IR, with its weights in a file of its own."""
    import openvino

    found = openvino.Core().read_model(onnx)
    if onnx.stem == LANGUAGE:
        _keep_caches(found)
    openvino.save_model(found, folder / f"{onnx.stem}.xml", compress_to_fp16=False)


def _keep_caches(model: Any) -> None:
    """Let the decoder keep its caches: states that begin empty, and follow `beam_idx` [B]."""
    import openvino
    from openvino import opset15 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    past = {port.any_name: port for port in model.inputs if port.any_name.startswith("past_")}
    embeds = model.input("inputs_embeds")
    batch = embeds.get_partial_shape()[0]
    beam = ops.parameter(openvino.PartialShape([batch]), openvino.Type.i32, name="beam_idx")
    beam.output(0).get_tensor().set_names({"beam_idx"})
    model.add_parameters([beam])
    first = ops.constant(0, openvino.Type.i64)
    for cache in past.values():
        readers = cache.get_target_inputs()
        chosen = ops.gather(cache, beam, first)
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    kept = {name: name.replace("past_key_values", "present", 1) for name in past}
    apply_make_stateful_transformation(model, kept)
    prompts = ops.gather(ops.shape_of(embeds, "i64"), ops.constant([0], openvino.Type.i64), first)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, size = node.get_output_partial_shape(0)
            sizes = ops.constant([heads.get_length(), 0, size.get_length()], openvino.Type.i64)
            shape = ops.concat([prompts, sizes], 0)
            empty = ops.constant(0, node.get_output_element_type(0))
            node.set_arguments([ops.broadcast(empty, shape)])
    model.validate_nodes_and_infer_types()


def _write_tokenizers(packing: Packing, folder: Path) -> None:
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory(dir=folder, prefix=".tokenizer-") as given:
        packing.copy(Path(given), TOKENIZER_FILES)
        file = Path(given) / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(_splitting(content)), encoding="utf-8")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(given)
    tokenizer.chat_template = beginning_written(packing, str(tokenizer.chat_template))
    read, write = convert_tokenizer(tokenizer, with_detokenizer=True)
    openvino.save_model(read, folder / "openvino_tokenizer.xml")
    openvino.save_model(write, folder / "openvino_detokenizer.xml")
    (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def _splitting(content: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer whose words are split at blanks by a pattern.

    The converter (2026.4.1) reads `WhitespaceSplit` as something else, without a word.
    """
    if (content.get("pre_tokenizer") or {}).get("type") == "WhitespaceSplit":
        pattern = {"Regex": r"\s+"}
        split = {"type": "Split", "pattern": pattern, "behavior": "Removed", "invert": False}
        content["pre_tokenizer"] = split
    return content


def _settings(packing: Packing) -> dict[str, dict[str, Any]]:
    """Return the client's small files by name."""
    facts, dims = packing.facts, packing.facts.decoder
    size, crop, rescale, normal = _steps_of(packing)
    height, width = crop.size
    return {
        "config.json": {
            "model_type": MODEL_TYPES[facts.family],
            "hidden_size": dims.hidden + 1,
            "image_token_index": facts.image_token_id,
            "text_config": {
                "hidden_size": dims.hidden + 1,
                "vocab_size": dims.vocab,
                "num_hidden_layers": dims.layers,
            },
            "vision_config": {"image_size": facts.image_size},
            "vocab_size": dims.vocab,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": size.edge},
            "crop_size": {"height": height, "width": width},
            "do_resize": True,
            "do_center_crop": True,
            "do_rescale": True,
            "do_normalize": True,
            "rescale_factor": rescale.factor,
            "image_mean": list(normal.mean),
            "image_std": list(normal.std),
            "resample": 3,
        },
    }
