"""The page for browsers: `vtcompress pack --for web`."""

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from compressor.disk.files import write_text
from export.artifact.artifact import Artifact
from export.clients import transformers_js
from export.clients.client import Answered, CheckQuestion, Client
from export.clients.transformers_js import node
from export.clients.transformers_js.client import (
    PICTURES,
    TransformersJs,
    picture_refused,
    write_models,
)
from export.graphs.spec import BASELINE, in_order

if TYPE_CHECKING:
    from export.clients.packing import Packing

COMPRESSED, ORIGINAL, CLIENT = "compressed", "original", "client"
"""Folders of the page: two models, and the client's own files."""
BUNDLE = "transformers.min.js"
RUNTIME = "onnxruntime-web"
PAGE = ("index.html", "page.css", "page.mjs", "worker.mjs")
WASM = re.compile(r"ort-wasm-[\w.-]+?(?=\.wasm)")


class WebPage(Client):
    """One static page with the model in it, run by the browser itself."""

    name = "web"
    pixel_limit = TransformersJs.pixel_limit

    def refuses(self, artifact: Artifact) -> list[str]:
        """Return why no page can be made: what the client does not run, or that it is not there to copy."""
        reasons = picture_refused(artifact)
        if problem := _client_problem():
            reasons.append(problem)
        return reasons

    def write(self, packing: "Packing", folder: Path) -> None:
        """Write the page, the client's files and the models: the compressed one and the original."""
        models = {folder / COMPRESSED: "decoder"}
        if in_order(packing.manifest.graphs, BASELINE):
            models[folder / ORIGINAL] = BASELINE
        write_models(packing, models)
        stem = copy_client(folder / CLIENT)
        own = files(__package__)
        for name in PAGE:
            write_text(
                folder / name,
                (own / name).read_text("utf-8").replace("client/WASM", f"{CLIENT}/{stem}"),
            )
        write_text(folder / PICTURES, (files(transformers_js) / PICTURES).read_text("utf-8"))
        told = [about(packing, one, name) for one, name in models.items()]
        content = {"name": packing.facts.name, "foot": _foot(), "models": told}
        write_text(folder / "page.json", json.dumps(content, indent=1) + "\n")

    def readme(self, packing: "Packing") -> str:
        """Return how the page is served."""
        return README.replace("NAME", packing.facts.name)

    def check(
        self,
        packing: "Packing",  # noqa: ARG002 -- the folder says it all
        folder: Path,
        questions: Sequence[CheckQuestion],
    ) -> list[Answered] | str:
        """Ask the client in Node about the compressed model: no browser is started."""
        return node.answers_in_node(folder / COMPRESSED, questions, folder / PICTURES)


def about(packing: "Packing", folder: Path, decoder: str) -> dict[str, str]:
    """Return what the page says of a model."""
    predicted = packing.manifest.predicted
    visual, text = predicted.visual, predicted.text
    prompt = f"of a prompt of {visual} visual and {text} text tokens"
    flops, cached = predicted.flops, predicted.kv_bytes
    title = "Compressed"
    if decoder == BASELINE:
        flops, cached, title = predicted.flops_original, predicted.kv_bytes_original, "Original"
    detail = f"{flops / 1e9:.3g} GFLOP and {cached / 1e6:.3g} MB of caches, predicted {prompt}"
    return {"folder": folder.name, "title": title, "detail": detail}


def copy_client(folder: Path) -> str:
    """Copy the client's bundle, its WebAssembly and their licences; return the stem of the latter's files."""
    package, runtime = node.find_package(), node.find_package(RUNTIME)
    if package is None or runtime is None:
        raise RuntimeError("refuses has let it pass")
    folder.mkdir()
    bundle = package.folder / "dist" / BUNDLE
    copyfile(bundle, folder / BUNDLE)
    stem = _wasm_stem(bundle)
    for ending in (".mjs", ".wasm"):
        copyfile(runtime.folder / "dist" / f"{stem}{ending}", folder / f"{stem}{ending}")
    for one in (package, runtime):
        for licence in one.folder.glob("LICENSE*"):
            copyfile(licence, folder / f"LICENSE.{one.folder.name}")
    return stem


def _client_problem() -> str:
    package, runtime = node.find_package(), node.find_package(RUNTIME)
    if package is None or runtime is None:
        return (
            f"copies the npm packages {node.PACKAGE} and {RUNTIME} into the page, and they are not "
            f"installed: {node.INSTALL}"
        )
    bundle = package.folder / "dist" / BUNDLE
    stem = _wasm_stem(bundle) if bundle.is_file() else ""
    if not stem or not (runtime.folder / "dist" / f"{stem}.wasm").is_file():
        return (
            f"does not know the files of {node.PACKAGE} {package.version}; install version {TESTED}"
        )
    return ""


def _wasm_stem(bundle: Path) -> str:
    """Return which WebAssembly a bundle of the client loads, `ort-wasm-...`; empty: none is named."""
    found = WASM.search(bundle.read_text("utf-8"))
    return found[0] if found else ""


def _foot() -> str:
    package = node.find_package()
    version = package.version if package else ""
    return f"transformers.js {version} on WebAssembly, greedy. Figures are of this browser and machine."


TESTED = "4.3.2"
"""The version of the client that tests run."""
README = """# NAME in a browser

Written by `vtcompress pack --for web`: one page that asks the model about pictures. The model runs in the
browser; nothing is sent, and nothing is fetched from elsewhere.

    python -m http.server 8000

in this folder, then open http://localhost:8000. Any static file server does; opened as a file the page does
not work, because browsers let files load neither modules nor models.

- One thread computes. With the headers `Cross-Origin-Opener-Policy: same-origin` and
  `Cross-Origin-Embedder-Policy: require-corp` browsers allow several.
- `compressed/` is the model as `vtcompress pack --for transformers.js` writes it, `original/` the same with
  the original's decoder, where the artifact holds that. Files of weights that both read are hard links: copy
  the folder with a tool that keeps them, or they take their room twice.
- `client/` holds files of the npm packages @huggingface/transformers and onnxruntime-web, with their
  licences.
"""
