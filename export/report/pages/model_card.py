"""The model card of an artifact: `README.md` in the Hugging Face format, made from what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.disk.files import read_text
from compressor.errors import ArtifactError
from compressor.installing import wheel_command
from export.backends.checked_on import CHECKED_ON
from export.backends.registry import running
from export.report.data import ReportData, headline, method_words
from export.report.done_gained_lost import done, gained, lost
from export.report.pages.markdown_report import kinds_tables, predicted_rows, warnings
from export.report.text.markdown import escaped, fenced, table
from export.report.words.checks import INTERVAL_WORDS, fidelity_rows
from export.report.words.cuts import splits
from export.report.words.dtypes import dtype_words
from export.report.words.exits import EXIT_COLUMNS, exit_rows, may_exit, mean_words
from export.report.words.ladder import claim, ran_on_gpu
from export.results.bench import bench_rows, ratio_words
from export.results.verdict import verdict_words

CARD_FILE = "README.md"
CHECKED_COLUMNS = ("check", "outcome", "what it proves")
PAPERS = {
    "shortv": (
        "ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in Ineffective "
        "Layers, arXiv 2504.00502"
    ),
    "visual_exit": (
        "VTW: Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference, "
        "arXiv 2405.05803"
    ),
    "dyvte": (
        "DyVTE: Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the "
        "Empirical Findings, arXiv 2411.19628"
    ),
    "yopo": (
        "YOPO: Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See, arXiv 2410.06169"
    ),
}
"""Where methods come from, by the name of the method."""

LICENCE_KEYS = ("license", "license_name", "license_link")
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
    try:
        lines = read_text(folder / CARD_FILE, ArtifactError).splitlines()
        if not lines or lines[0].strip() != "---":
            return {}
        end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
        front = yaml.safe_load("\n".join(lines[1:end]))
    except (ArtifactError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    if not isinstance(front, dict):
        return {}
    return {key: front[key] for key in LICENCE_KEYS if _is_licence(front.get(key))}


def _is_licence(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(
        isinstance(v, str) and 0 < len(v) <= LONGEST_VALUE and v.isprintable() for v in values
    )


def model_card(data: ReportData, origin: Origin) -> str:
    """Return the whole card."""
    manifest = data.manifest
    methods = ", ".join(map(method_words, data.methods)) or "none"
    base = f"`{origin.hub_id}`" if origin.hub_id else escaped(manifest.model.name)
    parts = [
        _front_matter(data, origin),
        f"# {escaped(manifest.model.name)}, compressed",
        f"{base} with less work on visual tokens, as ONNX graphs ({manifest.dtype}) for "
        f"{_runs_in(manifest.dtype)}, made by vtcompress {escaped(manifest.tools.get('vtcompress', ''))}. "
        "`report.html` shows everything that was measured.",
        "\n".join(f"- **{figure.value}** {figure.meaning}" for figure in headline(manifest)),
        *(f"**WARNING: {line}.**" for line in warnings(manifest)),
        "## Method",
        f"Methods of the recipe: {escaped(methods)}.",
        " ".join(done(data)),
        *_papers(data),
        "## Measured",
        f"{' '.join(gained(data))} {' '.join(lost(data))}",
        *_figures(data),
        "## How far it was checked",
        table(CHECKED_COLUMNS, [(r.name, r.outcome, escaped(r.proves)) for r in data.rungs]),
        escaped(claim(data.rungs)),
        "## How to run",
        _how_to_run(manifest.dtype),
        "## Limits",
        _limits(data, origin),
        "## Recipe",
        fenced(data.recipe, "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(data: ReportData, origin: Origin) -> str:
    tags = ["vtcompress", "onnx", "multimodal", "visual-token-compression"]
    tags += [method.name for method in data.methods]
    front: dict[str, Any] = {}
    if origin.hub_id:
        front["base_model"] = origin.hub_id
    front |= origin.licence
    front |= {"library_name": "vtcompress", "pipeline_tag": "image-text-to-text", "tags": tags}
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000).strip()}\n---"


def _papers(data: ReportData) -> list[str]:
    lines = [f"- {PAPERS[method.name]}" for method in data.methods if method.name in PAPERS]
    return ["\n".join(["Papers:", "", *lines])] if lines else []


def _figures(data: ReportData) -> list[str]:
    manifest = data.manifest
    rows = [(name, ratio, "predicted") for name, _, _, ratio in predicted_rows(manifest)]
    if manifest.measured:
        m = manifest.measured
        rows += [(name, ratio_words(t), "measured") for name, t in bench_rows(m)]
        cache = f"{m.kv_bytes_original / m.kv_bytes:.2f} x"
        rows.append((f"KV cache bytes ({manifest.dtype})", cache, "measured"))
    parts = [table(("original / compressed", "ratio", ""), rows)]
    if data.plan.gates is not None:
        parts.append(mean_words(data.plan))
        if exits := exit_rows(data.plan, manifest.loss):
            parts.append(table(EXIT_COLUMNS, exits))
    if manifest.fidelity is not None:
        words = ", ".join(
            f"{row.measure} {row.found}" for row, _ in fidelity_rows(manifest.fidelity)
        )
        parts.append(f"Export fidelity: {verdict_words(manifest.fidelity)} ({words}).")
        parts += map(escaped, dtype_words(manifest))
    if manifest.loss is not None:
        found = verdict_words(manifest.loss)
        parts.append(f"Compression loss on {escaped(manifest.loss.data)}: {found}.")
        parts += [f"- {escaped(line)}" for line in manifest.loss.failures]
        parts += [*kinds_tables(manifest.loss), INTERVAL_WORDS]
    else:
        parts.append("Compression loss: not run, there was no validation data.")
    return parts


def _runs_in(dtype: str) -> str:
    titles = ", ".join(backend.title for backend in running(dtype))
    return " and ".join(titles.rsplit(", ", 1))


def _how_to_run(dtype: str) -> str:
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
    return f"{fenced(shell, 'console')}\n\n{fenced(python, 'python')}"


def _limits(data: ReportData, origin: Origin) -> str:
    decode = "- Decode steps are not faster: they have no visual tokens."
    if splits(data.plan):
        decode = (
            "- Decode steps save only what they no longer read: keys and values of visual tokens in pruned "
            "heads and behind an exit."
        )
    elif may_exit(data.plan):
        decode = (
            "- Decode steps save only what they no longer read: keys and values of visual tokens "
            "behind the exit."
        )
    lines = [
        "- The weight file does not shrink: text tokens still use every weight.",
        decode,
        "- Never run on a GPU."
        if not ran_on_gpu(data.rungs)
        else "- Run on the GPUs named above alone.",
        "- Figures hold for the data and the machine that they were measured on; measure on your own with "
        "`vtcompress validate` and `vtcompress bench`.",
    ]
    if not origin.licence:
        lines.append(
            "- The original's folder named no licence; look it up before you pass this on."
        )
    return "\n".join(lines)
