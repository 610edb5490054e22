"""The model card of an artifact: `README.md` in the Hugging Face format, made from what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.disk.opening import open_regular
from compressor.disk.paths import leads_out
from compressor.installing import wheel_command
from compressor.schema.yaml_text import parse_value
from export.backends.checked_on import CHECKED_ON
from export.backends.registry import running
from export.report.data import ReportData
from export.report.document import Block, Bullets, Code, Document, Group, Section, Table, Words
from export.report.pages.report import head_blocks, recipe_section
from export.report.render.markdown import markdown
from export.report.sections.checks import fidelity_outcome, ladder_blocks, loss_blocks
from export.report.sections.short import done, gained, lost
from export.report.sections.speed import predicted_table
from export.report.words.cuts import splits
from export.report.words.dtypes import dtype_words
from export.report.words.exits import exits_table, may_exit, mean_words
from export.report.words.ladder import ran_on_gpu
from export.report.words.methods import methods_words
from export.report.words.quantization import shrunk_words
from export.results.bench import bench_rows, ratio_words

CARD_FILE = "README.md"
LICENCE_KEYS = ("license", "license_name", "license_link")
# A card's front matter ends before, or is not read: YAML takes seconds for a megabyte.
MAX_FRONT_BYTES = 64 * 1024
# Longer values are no licence.
LONGEST_VALUE = 300


@dataclass(frozen=True)
class Origin:
    """Where a model came from.

    Attributes:
        hub_id: None if it was a local folder.
        licence: what its own card says of the licence, by the card's keys; empty if nothing.
    """

    hub_id: str | None = None
    licence: Mapping[str, str | list[str]] = field(default_factory=dict)


def licence_of(folder: Path) -> dict[str, str | list[str]]:
    """Return the licence keys of a model folder's card; empty without a readable card."""
    card = folder / CARD_FILE
    try:
        if leads_out(card, folder):
            return {}
        with open_regular(card) as stream:
            lines = stream.read(MAX_FRONT_BYTES).decode("utf-8", "ignore").splitlines()
    except OSError:
        return {}
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
    # Without aliases: of a few lines they make more than any memory holds.
    front = parse_value("\n".join(lines[1:end]))
    if not isinstance(front, dict):
        return {}
    found = {key: front[key] for key in LICENCE_KEYS if _is_licence(front.get(key))}
    return {key: [*value] if isinstance(value, tuple) else value for key, value in found.items()}


def _is_licence(value: Any) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    texts = [v for v in values if isinstance(v, str) and v.isprintable()]
    return 0 < len(values) == len(texts) and all(0 < len(v) <= LONGEST_VALUE for v in texts)


def model_card(data: ReportData, origin: Origin) -> str:
    """Return the whole card."""
    manifest = data.manifest
    sections = (
        Section("head", "Headline", "", head_blocks(manifest)),
        Section("method", "Method", "Method", _method(data)),
        Section("measured", "Measured", "Measured", _measured(data)),
        Section("checked", "Checks", "How far it was checked", ladder_blocks(data.rungs)),
        Section("run", "How to run", "How to run", _how_to_run(manifest.dtype)),
        Section("limits", "Limits", "Limits", [Bullets(_limits(data, origin))]),
        recipe_section(data),
    )
    sub = (
        f"{origin.hub_id or manifest.model.name} with less work on visual tokens, as ONNX graphs "
        f"({manifest.dtype}) for {_runs_in(manifest.dtype)}, made by vtcompress "
        f"{manifest.tools.get('vtcompress', '')}. report.html shows everything that was measured."
    )
    card = Document(f"{manifest.model.name}, compressed", sub, sections)
    return markdown(card, front=_front_matter(data, origin))


def _front_matter(data: ReportData, origin: Origin) -> str:
    tags = ["vtcompress", "onnx", "multimodal", "visual-token-compression"]
    front: dict[str, Any] = {"base_model": origin.hub_id} if origin.hub_id else {}
    front |= origin.licence
    front |= {"library_name": "vtcompress", "pipeline_tag": "image-text-to-text"}
    front["tags"] = [*tags, *(method.name for method in data.methods)]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000).strip()}\n---"


def _method(data: ReportData) -> list[Block]:
    papers = tuple(method.words.paper for method in data.methods if method.words.paper)
    of = "Methods of the recipe" if data.by_recipe else "Methods"
    blocks = [
        Words(f"{of}: {methods_words(data.methods, by_recipe=bool(data.by_recipe))}."),
        Words(" ".join(done(data))),
    ]
    return [*blocks, Group("Papers", [Bullets(papers)])] if papers else [*blocks]


def _measured(data: ReportData) -> list[Block]:
    manifest = data.manifest
    rows = [(name, ratio, "predicted") for name, _, _, ratio in predicted_table(manifest).rows]
    if (m := manifest.measured) is not None:
        rows += [(name, ratio_words(t), "measured") for name, t in bench_rows(m)]
        cache = f"{m.kv_bytes_original / m.kv_bytes:.2f} x"
        rows.append((f"KV cache bytes ({manifest.dtype})", cache, "measured"))
    exits = exits_table(data.plan, manifest.loss)
    return [
        Words(f"{' '.join(gained(data))} {' '.join(lost(data))}"),
        Table("Original beside compressed", ("original / compressed", "ratio", ""), rows),
        *([Words(mean_words(data.plan))] if data.plan.gates else []),
        *([exits] if exits else []),
        fidelity_outcome(manifest.fidelity),
        *map(Words, dtype_words(manifest)),
        *loss_blocks(manifest.loss, "there was no validation data"),
    ]


def _runs_in(dtype: str) -> str:
    titles = ", ".join(backend.title for backend in running(dtype))
    return " and ".join(titles.rsplit(", ", 1))


def _how_to_run(dtype: str) -> list[Block]:
    backend, flag, argument = running(dtype)[0], "", ""
    if backend is not CHECKED_ON:
        flag, argument = f" --backend {backend.name}", f', backend="{backend.name}"'
    shell = (
        f"{wheel_command(backend.extra)}   # or '.[{backend.extra}]' in a clone of vtcompress\n"
        f'vtcompress generate .{flag} --image photo.jpg --prompt "What is this?"'
    )
    python = (
        "import vtcompress\n\n"
        f'runtime = vtcompress.Runtime.load("."{argument})\n'
        'for piece in runtime.generate("What is this?", "photo.jpg"):\n'
        '    print(piece, end="", flush=True)\n'
        "print()"
    )
    return [Code(shell, "console"), Code(python, "python")]


def _limits(data: ReportData, origin: Origin) -> tuple[str, ...]:
    decode = "are not faster: they have no visual tokens."
    if data.plan.front is not None or data.plan.keeps() or data.plan.runs():
        decode = (
            "save only what they no longer read: keys and values of visual tokens that are gone."
        )
    elif splits(data.plan) or may_exit(data.plan):
        where = "in pruned heads and behind an exit" if splits(data.plan) else "behind the exit"
        decode = f"save only what they no longer read: keys and values of visual tokens {where}."
    shrunk = shrunk_words(data.manifest)
    weights = "The weight file does not shrink: text tokens still use every weight."
    if shrunk:
        weights = f"Text tokens still use every weight, and {shrunk}; weights.bin holds the original's, too."
        decode = "read less, as the weights are smaller; how much faster that is, a backend's kernels decide."
    run = "Never run on a GPU."
    if ran_on_gpu(data.rungs):
        run = "Run on GPUs as the ladder of checks above tells, and not otherwise."
    lines = (
        weights,
        f"Decode steps {decode}",
        run,
        "Figures hold for the data and the machine that they were measured on; measure on your own with "
        "vtcompress validate and vtcompress bench.",
    )
    if origin.licence:
        return lines
    return (*lines, "The original's folder named no licence; look it up before you pass this on.")
