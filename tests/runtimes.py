"""Runtimes of tiny models for tests: exported, or compressed in torch; and a session that tells what ran."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import vtcompress
from compressor.arrangement import Arrangement
from compressor.compressed import compress
from compressor.families import load
from compressor.families.pictures.text import PictureForm
from compressor.plan.plan import Cache
from compressor.planner import make_plan
from compressor.samples.layout import VisualRows
from export.backends.torch_model import TorchSession
from export.runtime.prompter import Prompter
from export.runtime.runtime import Runtime
from export.session.arrays import Array
from export.session.feeds import CallRows
from export.session.session import Past, Session


@dataclass
class Spy:
    """Passes every call on and keeps what the decoder was given and gave.

    Attributes:
        rows: visual and text rows of each decoder call.
        logits: what each gave at its last row.
    """

    inner: Session
    rows: list[tuple[int, int]] = field(default_factory=list)
    logits: list[Array] = field(default_factory=list)
    pictures: int = 0

    @property
    def reads_question(self) -> bool:
        return self.inner.reads_question

    @property
    def moves_text(self) -> bool:
        return self.inner.moves_text

    @property
    def max_batch(self) -> int | None:
        return self.inner.max_batch

    @property
    def caches(self) -> tuple[Cache, ...]:
        return self.inner.caches

    @property
    def rows_kept(self) -> int | None:
        return self.inner.rows_kept

    def vision(self, pixel_values: Array, arrangement: Arrangement | None = None) -> VisualRows:
        self.pictures += len(pixel_values)
        return self.inner.vision(pixel_values, arrangement)

    def embed(self, input_ids: Array) -> Array:
        return self.inner.embed(input_ids)

    def decode(self, rows: CallRows, past: Past) -> tuple[Array, Past]:
        logits, present = self.inner.decode(rows, past)
        self.rows.append((rows.visual_index.shape[1], rows.text_index.shape[1]))
        self.logits.append(logits[0, -1])
        return logits, present

    def empty_past(self, batch: int) -> Past:
        return self.inner.empty_past(batch)

    def check_room(self, past: Past, visual: int, text: int) -> None:
        self.inner.check_room(past, visual, text)

    def past_shapes(self, past: Past) -> tuple[tuple[int, ...], ...]:
        return self.inner.past_shapes(past)

    def cached_keys(self, past: Past, layer: int) -> Array:
        return self.inner.cached_keys(past, layer)

    def past_bytes(self, past: Past) -> int:
        return self.inner.past_bytes(past)

    def buffer_bytes(self, past: Past) -> int | None:
        return self.inner.buffer_bytes(past)

    def clear(self) -> None:
        self.rows.clear()
        self.logits.clear()
        self.pictures = 0


@dataclass
class Beside(Spy):
    """A decoder alone; pictures and tokens go through another session of the same model.

    Attributes:
        looks: that session.
    """

    looks: Session = field(kw_only=True)

    @property
    def rows_kept(self) -> int | None:
        return self.looks.rows_kept

    def vision(self, pixel_values: Array, arrangement: Arrangement | None = None) -> VisualRows:
        self.pictures += len(pixel_values)
        return self.looks.vision(pixel_values, arrangement)

    def embed(self, input_ids: Array) -> Array:
        return self.looks.embed(input_ids)


def spied(runtime: Runtime) -> tuple[Runtime, Spy]:
    """Return the runtime on a spy."""
    spy = Spy(runtime.session)
    return Runtime(spy, runtime.facts, runtime.prompter, runtime.images, runtime.settings), spy


def exported(
    model: Path,
    output: Path,
    dtype: str = "float32",
    compress: Sequence[dict[str, Any]] = (),
    keys: dict[str, Any] | None = None,
) -> Path:
    """Export a model with the identity recipe, the given methods and keys."""
    recipe = vtcompress.load_recipe("identity").override(
        {"model.id": str(model), "export.dtype": dtype, "compress": list(compress), **(keys or {})}
    )
    vtcompress.export(recipe, output, bench_rounds=0)
    return output


def in_torch(
    model_folder: Path, frozen: Sequence[int], axes: tuple[int, ...] | None = None
) -> Runtime:
    """Return a runtime on a model compressed in torch; the listed layers are frozen.

    With axes it is another model, whose decoder turns rows on them.
    """
    recipe = vtcompress.load_recipe("shortv").override(
        {"model.id": str(model_folder), "compress": [{"shortv": {"layers": list(frozen)}}]}
    )
    model = load(str(model_folder))
    decoder = model.facts.decoder.model_copy(update={"rope_axes": axes})
    model = replace(model, facts=model.facts.model_copy(update={"decoder": decoder}))
    plan = make_plan(model.facts, model.digest, recipe.methods, None)
    session = TorchSession(compress(model, plan))
    return Runtime.on_session(session, model_folder, model.facts, PictureForm(token="<image>"))


def with_template(runtime: Runtime, source: Path, template: str, folder: Path) -> Runtime:
    """Return a runtime with another chat template, read as any other from its folder."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    facts, image = runtime.facts, runtime.prompter.image_token
    prompter = Prompter.from_folder(folder, image, facts.eos_token_ids)
    return Runtime(runtime.session, facts, prompter, runtime.images)
