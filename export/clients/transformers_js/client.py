"""transformers.js as a client: `vtcompress pack --for transformers.js`."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.disk.files import write_text
from compressor.families.pictures.text import TextRun
from export.artifact.artifact import Artifact
from export.clients.client import Answered, CheckQuestion, Client
from export.clients.preparing import beginning_written
from export.clients.rows import rows_refused
from export.clients.transformers_js import configuration, node
from export.runtime.chat_template import find_template

if TYPE_CHECKING:
    from export.clients.packing import Packing


class TransformersJs(Client):
    """The client of Hugging Face for Node and browsers, by its class for one picture of one size."""

    name = "transformers.js"
    pixel_limit = 1e-5

    def refuses(self, artifact: Artifact) -> list[str]:
        """Return why the client cannot run an artifact: what its class for one picture does not know."""
        return picture_refused(artifact)

    def write(self, packing: "Packing", folder: Path) -> None:
        """Write graphs, weights, configuration and the exact resize."""
        write_model(packing, folder)
        write_text(folder / PICTURES, (files(__package__) / PICTURES).read_text("utf-8"))

    def readme(self, packing: "Packing") -> str:
        """Return how the folder is used."""
        return README.replace("NAME", packing.facts.name)

    def check(
        self,
        packing: "Packing",  # noqa: ARG002 -- the folder says it all
        folder: Path,
        questions: Sequence[CheckQuestion],
    ) -> list[Answered] | str:
        """Ask the client in Node."""
        return node.answers_in_node(folder, questions, folder / PICTURES)


README = """# NAME for transformers.js

Written by `vtcompress pack --for transformers.js`; transformers.js loads this folder as any other LLaVA.

```js
import { AutoProcessor, LlavaForConditionalGeneration, RawImage } from '@huggingface/transformers';
import { fit } from './pictures.mjs'; // of this folder

const folder = '/path/to/this/folder';
const processor = await AutoProcessor.from_pretrained(folder);
const model = await LlavaForConditionalGeneration.from_pretrained(folder);

const image = fit(await RawImage.read('photo.jpg'), processor.image_processor.config);
const content = [{ type: 'image' }, { type: 'text', text: 'What is this?' }];
const prompt = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
const inputs = await processor(image, prompt, { add_special_tokens: false });
const ids = await model.generate({ ...inputs, do_sample: false, max_new_tokens: 64 });
console.log(processor.batch_decode(ids.slice(null, [inputs.input_ids.dims.at(-1), null]), {
    skip_special_tokens: true,
})[0]);
```

- Install the client with `npm install @huggingface/transformers`; `pack.json` says whether it gave the
  runtime's answers where this folder was written.
- `fit` resizes a picture as Python's Pillow does, bit for bit. Without it the client resizes with a filter of
  its own, and the model sees other pixels than it was trained and checked on; pictures that have the model's
  size already need no `fit`.
- One picture in a prompt, one prompt in a call.
- A second turn takes `return_dict_in_generate: true` in the first, then the whole conversation as the prompt,
  its `past_key_values`, and no `pixel_values`.
- Files of weights that several graphs read are hard links: copy the folder with a tool that keeps them, or
  they take their room twice.
"""
PICTURES = "pictures.mjs"


def picture_refused(artifact: Artifact) -> list[str]:
    """Return why the client cannot run an artifact."""
    manifest = artifact.manifest
    told = "run the artifact with `vtcompress generate`"
    reasons = rows_refused(artifact, any_cache=True)
    if manifest.model.most_tiles > 1:
        reasons.append(f"takes one tile a picture, and this model cuts pictures into tiles; {told}")
    if manifest.picture_text != TextRun():
        reasons.append(
            f"puts image tokens alone in place of a picture, and this model has words around them; {told}"
        )
    if manifest.dtype == "bfloat16":
        reasons.append("has no bfloat16; export with dtype float32 or float16")
    if problem := configuration.picture_problem(manifest.picture_steps):
        reasons.append(problem)
    return reasons


def write_model(packing: "Packing", folder: Path, decoder: str = "decoder") -> None:
    """Write what the client loads: graphs and weights in `onnx/`, and configuration files.

    Args:
        packing: of the artifact.
        folder: to write to; it is there.
        decoder: the compressed one, or the original's.
    """
    write_models(packing, {folder: decoder})


def write_models(packing: "Packing", folders: dict[Path, str]) -> None:
    """Write several decoders of an artifact, each by its folder, with weights that are there once."""
    from export.clients.transformers_js.graphs import client_graphs
    from export.clients.transformers_js.weights import save_linked

    manifest = packing.manifest
    dtypes = configuration.session_dtypes(manifest)
    graphs = {folder: client_graphs(packing, decoder) for folder, decoder in folders.items()}
    placed = {}
    for folder, found in graphs.items():
        (folder / "onnx").mkdir(parents=True)
        for name, model in found.models.items():
            suffix = configuration.SUFFIXES[dtypes[name]]
            placed[folder / "onnx" / f"{name}{suffix}.onnx"] = (folder, name, model)
    counts = save_linked(packing, {file: model for file, (_, _, model) in placed.items()})
    steps = manifest.picture_steps or ()
    own = packing.settings("tokenizer_config.json")
    template, _ = find_template(packing.artifact.folder, own)
    template = beginning_written(packing, template)
    for folder, found in graphs.items():
        parts = {name: counts[file] for file, (at, name, _) in placed.items() if at == folder}
        documents = {
            "config.json": configuration.model(manifest, found.layers, parts),
            "preprocessor_config.json": configuration.preprocessor(steps),
            "processor_config.json": configuration.processor(packing.facts, manifest.image_token),
            "tokenizer_config.json": configuration.tokenizer(own, template),
            "generation_config.json": configuration.generation(
                packing.settings("generation_config.json"), packing.facts
            ),
        }
        packing.copy(folder, ("tokenizer.json",))
        for name, content in documents.items():
            write_text(folder / name, json.dumps(content, indent=1) + "\n")
