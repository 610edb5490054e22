"""What `tests.fuzz` damages: each kind of file with how a case of it is made and read."""

import hashlib
import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import ArtifactWarning
from export.artifact.artifact import Artifact
from export.report.pages.model_card import licence_of
from export.runtime.prompter import Prompter
from export.runtime.runtime import Runtime
from tests.graph_mutations import damaged_graph
from tests.models import make_picture
from tests.mutations import damaged, document
from tests.rotation_mutations import damaged_rotation

PROCESSOR, OLDER_PROCESSOR = "processor_config.json", "preprocessor_config.json"
INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00001.safetensors"
NEW_TOKENS = 3


@dataclass
class Place:
    """Copies of a model and of its artifact that a process damages, with a picture."""

    folder: Path

    @classmethod
    def copied(cls, model: Path, artifact: Path, folder: Path) -> "Place":
        shutil.copytree(model, folder / "model")
        shutil.copytree(artifact, folder / "artifact")
        make_picture(folder / "picture.png", seed=7)
        warnings.simplefilter("ignore", ArtifactWarning)
        return cls(folder)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def artifact(self) -> Path:
        return self.folder / "artifact"

    @property
    def picture(self) -> Path:
        return self.folder / "picture.png"

    def opened(self) -> Runtime:
        """Return a runtime whose graphs are loaded, before any file is damaged."""
        return Runtime.load(self.artifact, threads=1, verify=False, preload=True)


Reader = Callable[[bytes], None]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: as tables and seeds have it.
        count: cases of a whole run.
        prepare: returns, for a process with a place of its own, what makes a case of a seed, the case without
            a seed whole, and what reads it.
        chunk: cases that one process reads; OpenVINO leaves threads and memory of each behind.
    """

    name: str
    count: int
    prepare: Callable[[Place], tuple[Callable[[str], bytes], Reader]]
    chunk: int = 40


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _model_file(
    name: str, start: Any = None, read: Callable[[Place], object] | None = None
) -> Callable[[Place], tuple[Callable[[str], bytes], Reader]]:
    """A JSON file of a model folder: the facts and the processor are read of it."""

    def prepare(place: Place) -> tuple[Callable[[str], bytes], Reader]:
        path = place.model / name
        whole = _json(path) if start is None else start(place) if callable(start) else start

        def reader(content: bytes) -> None:
            path.write_bytes(content)
            (read or _read_model)(place)

        return (lambda seed: document(whole, seed)), reader

    return prepare


def _read_model(place: Place) -> None:
    """Do what `inspect` does, and see a picture."""
    from compressor.families import describe
    from compressor.families.registry import read_processor
    from vtcompress.stages.checks.processor import read_back

    describe(str(place.model))
    read = read_processor(str(place.model))
    readable = read_back(read.processor, read.folder, read.facts)
    readable.images(place.picture)
    readable.prompter.encode([{"role": "user", "content": "what is this"}])


def _load_model(place: Place) -> None:
    from compressor.families import describe, load

    describe(str(place.model))
    load(str(place.model))


def _older(place: Place) -> Any:
    """Return the image processor's keys as older versions wrote them, in a file of their own."""
    path = place.model / PROCESSOR
    whole = _json(path)
    path.unlink()
    return whole["image_processor"] | {"processor_class": whole["processor_class"]}


def _index(place: Place) -> Any:
    """Return the index of the model's weights, in a shard now."""
    from safetensors import safe_open

    path = place.model / "model.safetensors"
    with safe_open(path, framework="numpy") as opened:
        names = sorted(opened.keys())
    path.rename(place.model / SHARD)
    return {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, SHARD)}


def _generation(place: Place) -> tuple[Callable[[str], bytes], Reader]:
    from compressor.families import describe
    from compressor.generation.settings import model_settings

    name, runtime = "generation_config.json", place.opened()
    whole = _json(place.model / name) | {
        "repetition_penalty": 1.1, "no_repeat_ngram_size": 2, "bad_words_ids": [[5], [6, 7]], "min_length": 1,
        "min_new_tokens": 1, "suppress_tokens": [3], "begin_suppress_tokens": [4], "temperature": 0.5,
        "top_p": 0.9, "eos_token_id": [2],
    }  # fmt: skip

    def read(content: bytes) -> None:
        for folder in (place.model, place.artifact):
            (folder / name).write_bytes(content)
        settings = model_settings(place.artifact)
        asked = Runtime(runtime.session, runtime.facts, runtime.prompter, runtime.images, settings)
        asked.answer("what is this", place.picture, max_new_tokens=NEW_TOKENS)
        describe(str(place.model))

    return (lambda seed: document(whole, seed)), read


def _prompts(name: str, make: Callable[[bytes, str], bytes]) -> Any:
    """A file by which an artifact writes prompts."""

    def prepare(place: Place) -> tuple[Callable[[str], bytes], Reader]:
        path, runtime = place.artifact / name, place.opened()
        whole = path.read_bytes()

        def read(content: bytes) -> None:
            path.write_bytes(content)
            prompter = Prompter.from_folder(place.artifact, "<image>", eos_ids=(2,))
            asked = Runtime(runtime.session, runtime.facts, prompter, runtime.images)
            asked.answer("what is this", place.picture, max_new_tokens=NEW_TOKENS)

        return (lambda seed: make(whole, seed)), read

    return prepare


def _both(name: str) -> Any:
    """A file of the tokenizer: cases in turn as an artifact and as a model folder read it."""
    of_artifact = _prompts(name, lambda whole, seed: document(json.loads(whole), seed))
    of_model = _model_file(name)

    def prepare(place: Place) -> tuple[Callable[[str], bytes], Reader]:
        make, first = of_artifact(place)
        _, second = of_model(place)
        whole = (place.artifact / name).read_bytes()

        def read(content: bytes) -> None:
            try:
                first(content)
            finally:
                (place.artifact / name).write_bytes(whole)
                second(content)

        return make, read

    return prepare


PIECES = (
    "{% for m in messages %}", "{% endfor %}", "{{ m }}", "{{ m['content'] }}", "{{ messages }}", "<image>",
    "{% for a in range(999) %}", "{{ 'a' * 100000000 }}", "{{ 10 ** 10000 }}", "{{ '%999999999d' % 3 }}",
    "{{ '{:>999999999}'.format(1) }}", "{{ range(10 ** 9) | list }}", "{% set a = messages %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ raise_exception('no') }}", "{{ x.y.z }}",
    "{{ ''.__class__.__mro__ }}", "{{ self }}", "{{ cycler }}", "{{ [1] * 10 ** 9 }}",
    "{{ lipsum(n=100000) }}",
    "{% if true %}", "{% endif %}", "{% else %}", "{{ strftime_now('%Y') }}", "{{ messages | tojson }}",
    "{% set ns = namespace(a='a') %}", "{% set ns.a = ns.a ~ ns.a %}", "{{ messages | map('x') | list }}",
    "{{ 'a' | center(10 ** 9) }}", "{{ 'a' | indent(10 ** 9) }}", "{{ messages[0] }}", "{% break %}",
    "{% generation %}", "{% include 'x' %}", "{% import 'x' as y %}", "{{ (1" + ") + (1" * 200 + ") }}", "{#",
    "{{",
    "{{ " + "+".join(["1"] * 3000) + " }}", "{{ dict(a=1) | items | batch(10 ** 9, 0) | list }}",
    "{{ messages | sort }}", "{{ 'a'.zfill(10 ** 9) }}", "{{ 'a'.replace('', 'b' * 1000000) }}",
)  # fmt: skip


def template(whole: bytes, seed: str) -> bytes:
    """Return a template damaged in its bytes, or with a few pieces put in or in its place."""
    randomly = random.Random(seed)
    if not seed or randomly.random() < 0.4:
        return damaged([whole], seed)
    chosen = [randomly.choice(PIECES) for _ in range(randomly.randint(1, 4))]
    text = whole.decode()
    if randomly.random() < 0.5:
        return "".join(chosen).encode()
    for piece in chosen:
        at = randomly.choice([i for i, c in enumerate(text) if c == "{"] + [0, len(text)])
        text = text[:at] + piece + text[at:]
    return text.encode()


FRONT = b"""---
license: other
license_name: some-name
license_link: https://example.org/licence
tags: [a, b]
base_model: x/y
widget:
  - text: "what"
    example: {a: 1}
---
# A model
"""
BOMB = "\n".join(
    ["a: &a [x]", *(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)},' * 9}]" for i in range(9))]
)
LINES = (
    "license: [mit, apache-2.0]", "license: &x mit", "<<: *x", "license: !!python/object:os.system x", BOMB,
    "license: " + "[" * 2000, "license: " + "{a: " * 500, "? [a]\n: b", "license: 1e999", "license: 0x10",
    "license: 2026-01-01", "license: \x00", "license: \u202e", "license: 'a", "- a", "license: |\n  a\n  b",
    "...",
    "license: " + "9" * 5000, "%YAML 9.9", "\ufeff", "license: a\nlicense: b", "\t", "license: \x1b[2J",
)  # fmt: skip


def front_matter(seed: str) -> bytes:
    """Return a card damaged in its bytes, or with odd lines put into its head."""
    randomly = random.Random(seed)
    if not seed or randomly.random() < 0.5:
        return damaged([FRONT], seed)
    lines = FRONT.decode().splitlines()
    for _ in range(randomly.randint(1, 3)):
        at = randomly.randrange(1, 10)
        if randomly.random() < 0.5:
            lines[at] = randomly.choice(LINES)
        else:
            lines.insert(at, randomly.choice(LINES))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _readme(place: Place) -> tuple[Callable[[str], bytes], Reader]:
    def read(content: bytes) -> None:
        (place.model / "README.md").write_bytes(content)
        licence_of(place.model)

    return front_matter, read


def _manifest(place: Place) -> tuple[Callable[[str], bytes], Reader]:
    path = place.artifact / "manifest.json"
    whole = _json(path)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        Artifact.open(place.artifact)
        runtime = Runtime.load(place.artifact, threads=1)
        runtime.answer("what is this", place.picture, max_new_tokens=NEW_TOKENS)

    return (lambda seed: document(whole, seed)), read


def _graphs(
    backend: str, make_graph: Callable[[bytes, str], bytes] = damaged_graph, only: str = ""
) -> Callable[[Place], tuple[Callable[[str], bytes], Reader]]:
    """The graphs of an artifact, or one of them, whose manifest is made to fit."""

    def prepare(place: Place) -> tuple[Callable[[str], bytes], Reader]:
        path = place.artifact / "manifest.json"
        whole = _json(path)
        names = sorted({spec["file"] for spec in whole["graphs"]} - {"baseline_decoder.onnx"})
        contents = {name: (place.artifact / name).read_bytes() for name in names}
        chosen = ""

        def make(seed: str) -> bytes:
            nonlocal chosen
            chosen = only or random.Random(seed).choice(names)
            return make_graph(contents[chosen], seed)

        def read(content: bytes) -> None:
            entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            changed = whole | {"files": whole["files"] | {chosen: entry}}
            path.write_text(json.dumps(changed), encoding="utf-8")
            for name, held in contents.items():
                (place.artifact / name).write_bytes(content if name == chosen else held)
            runtime = Runtime.load(place.artifact, threads=1, backend=backend, preload=True)
            runtime.answer("what is this", place.picture, max_new_tokens=NEW_TOKENS)

        return make, read

    return prepare


KINDS = (
    Kind("config.json", 1600, _model_file("config.json")),
    Kind("generation_config.json", 900, _generation),
    Kind(PROCESSOR, 900, _model_file(PROCESSOR)),
    Kind(OLDER_PROCESSOR, 500, _model_file(OLDER_PROCESSOR, _older)),
    Kind("tokenizer.json", 900, _both("tokenizer.json")),
    Kind("tokenizer_config.json", 500, _both("tokenizer_config.json")),
    Kind("special_tokens_map.json", 200, _model_file(
        "special_tokens_map.json", {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}})),
    Kind("chat_template.jinja", 1000, _prompts("chat_template.jinja", template)),
    Kind("README.md", 1000, _readme),
    Kind(INDEX, 600, _model_file(INDEX, _index, _load_model)),
    Kind("manifest.json", 1200, _manifest),
    Kind("graphs in onnxruntime", 2500, _graphs("onnxruntime")),
    Kind("graphs in openvino", 1000, _graphs("openvino"), chunk=1),
    Kind("rotations in openvino", 300, _graphs("openvino", damaged_rotation, "decoder.onnx"), chunk=1),
)  # fmt: skip
