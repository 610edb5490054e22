"""The stage that tells what a folder or file is."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.disk.files import is_file, is_folder, read_text
from compressor.disk.mistaken import kind_of
from compressor.disk.opening import sha256_of
from compressor.disk.paths import at_home, check_path
from compressor.errors import ArtifactError, VtcompressError
from compressor.plan.kept import Kept
from compressor.plan.measured_cost import MeasuredCosts
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.samples.pictures import Picture, pictures_of, read_picture
from compressor.search.results import FRONT_FILE, SearchReport
from export.artifact.artifact import PLAN_FILE, SHOWN, Artifact
from export.runtime.images import ImageProcessor, SeenPicture
from vtcompress.shipped import PathLike
from vtcompress.stages.checks.processor import read_back
from vtcompress.stages.checks.prompts import processor_problems
from vtcompress.stages.checks.recipe import CHANGED_WORDS
from vtcompress.stages.inputs import (
    require_compress,
)


def inspect(path: PathLike, image: Picture | None = None) -> dict[str, Any]:
    """Tell what a model folder, compressed folder, artifact, search, plan, profile or file of costs is.

    No weights are loaded.

    Args:
        path: of it.
        image: a picture; what it becomes in this model stands under `picture`.

    Returns:
        A JSON-like mapping; `kind` says which of them it is. Of a model `problems` holds what is wrong with
        its processor and which weights of a folder are not there, if anything is; of a search, a plan and a
        compressed folder what was changed since it was written. Where a picture becomes several tiles, the
        facts of the model have `tile_tokens`, of one tile, in place of `visual_tokens`. Of an artifact
        `fidelity.by_layer` says whether its layers were checked each by itself.

    Raises:
        VtcompressError: none of them; or the picture cannot be read, or what is inspected takes none.
    """
    path = at_home(str(path))
    found: dict[str, Any] = _by_tile(_inspect(path))
    return found if image is None else found | {"picture": _picture(path, image, found["kind"])}


def _by_tile(found: Any) -> Any:
    """Return what was found, with the tokens of one tile called so where a picture becomes several tiles."""
    if not isinstance(found, Mapping):
        return found
    cut = "visual_tokens" in found and found.get("most_tiles", 1) > 1
    return {
        "tile_tokens" if cut and key == "visual_tokens" else key: _by_tile(value)
        for key, value in found.items()
    }


def _picture(path: str, image: Picture, kind: str) -> dict[str, Any]:
    """Return how many visual tokens a picture gives, and where they stand."""
    (picture,) = pictures_of([image])
    images, front = _image_processor(path, kind)
    seen = images(read_picture(picture, "image"))
    token, (rows, columns) = images.form.token, seen.grid
    tiles = "the whole picture"
    if len(seen.pixels) > 1:
        tiles = f"{columns} x {rows} tiles row by row, then the whole picture"
    found: dict[str, Any] = {"visual_tokens": seen.rows}
    if front is not None:
        found["visual_tokens_kept"] = seen.rows_kept(front.count, front.of)
    tile_tokens = seen.rows // len(seen.pixels)
    if seen.arrangement is not None:
        tile_tokens = seen.arrangement.tile_rows
        tiles = (
            f"the whole picture, then the lines of {columns} x {rows} tiles, without the padded border, each "
            "ended by one token"
        )
    if isinstance(seen.beside_others, SeenPicture):
        found["visual_tokens_beside_others"] = seen.beside_others.rows
    return {
        **found,
        "tiles": len(seen.pixels),
        "tile_grid": [rows, columns],
        "tile_tokens": tile_tokens,
        "order": tiles,
        "text": re.sub(
            f"(?:{re.escape(token)}){{2,}}",
            lambda run: f"{token} x {len(run[0]) // len(token)}",
            seen.text,
        ),
    }


def _image_processor(path: str, kind: str) -> tuple[ImageProcessor, Kept | None]:
    """Return what a model or artifact does to pictures, and how many rows of a tile enter; None: all."""
    folder = Path(path)
    if kind == "artifact":
        manifest = Artifact.open(folder, verify=False).manifest
        form, facts = manifest.picture_form, manifest.model
        rows = (facts.tile_rows, facts.arrangement)
        plan = Plan.load(folder / PLAN_FILE)
        return ImageProcessor.of_artifact(form, folder, *rows), plan.front
    if kind == "model":
        from compressor.families.registry import read_processor

        read = read_processor(path)
        return read_back(read.processor, read.folder, read.facts).images, None
    if kind == "compressed model":
        require_compress("reading a compressed model")
        from compressor.compressed import read_compressed_processor

        plan = Plan.load(folder / PLAN_FILE)
        processor = read_compressed_processor(folder, plan)
        return read_back(processor, folder, plan.model).images, plan.front
    raise VtcompressError(f"{path}: a {kind} takes no picture; give a model or an artifact")


def _inspect(model: str) -> dict[str, Any]:
    path = Path(model)  # which takes `./nope` for `nope`: a model is looked for as it was given
    check_path(path)
    if is_folder(path) and is_file(path / "manifest.json"):
        return {"kind": "artifact", **_artifact_facts(path)}
    if is_folder(path) and is_file(path / PLAN_FILE):
        return {"kind": "compressed model", **_plan_facts(path / PLAN_FILE)}
    if is_folder(path) and kind_of(path) == "search":
        found = _inspect_search(path / FRONT_FILE)
        return found | _problems(_changed_since(path, found["files"]))
    if is_file(path):
        return _inspect_file(path)
    if is_folder(path):
        _check_known(path)
    require_compress("inspecting a model")
    from compressor.families import describe
    from compressor.families.folder import missing_weights

    facts: dict[str, Any] = {"kind": "model", **describe(model).model_dump(mode="json")}
    # Of a hub id no weights were fetched.
    problems = (missing_weights(path) if is_folder(path) else ()) + processor_problems(model)
    return facts | _problems(problems)


def _problems(lines: Sequence[str]) -> dict[str, Any]:
    """Return what is wrong as `inspect` has it; nothing where nothing is."""
    return {"problems": list(lines)} if lines else {}


def _changed_since(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a line on files of a search that are gone or not those that it wrote; empty: all are."""
    names = [name for name, entry in files.items() if _digest(folder / name) != entry.get("sha256")]
    if not names:
        return ()
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"{folder}: {', '.join(names[:SHOWN])}{more}: changed or removed since the search wrote its files, "
        "so that its figures may be of others; search anew with `vtcompress search`",
    )


def _digest(file: Path) -> str:
    """Return the sha256 of a file's bytes; empty if it cannot be read."""
    try:
        return sha256_of(file)
    except (OSError, ValueError):  # also a name that no file can have
        return ""


def _plan_facts(path: Path) -> dict[str, Any]:
    plan = Plan.load(path)
    changed = (f"{path}: {CHANGED_WORDS}",) if plan.changed else ()
    return {**plan.model_dump(mode="json"), **_problems(changed)}


def _artifact_facts(folder: Path) -> dict[str, Any]:
    manifest = Artifact.open(folder, verify=False).manifest
    facts: dict[str, Any] = manifest.model_dump(mode="json")
    if manifest.fidelity is not None:
        facts["fidelity"]["by_layer"] = bool(manifest.fidelity.layers)
    return facts


def _check_known(folder: Path) -> None:
    """Refuse a folder of which nothing shows what it could be, and say what would."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as failure:
        raise VtcompressError(f"{folder}: {failure.strerror}; make the folder readable") from None
    if not names & {"config.json", "adapter_config.json"}:
        what = "is nothing that is known here" if names else "is empty"
        raise VtcompressError(
            f"{folder}: {what}; give the folder of a model (it holds config.json), an artifact "
            f"(manifest.json), what `compress` wrote ({PLAN_FILE}) or `search` ({FRONT_FILE}), or the file "
            "of a plan or profile"
        )


def _inspect_search(path: Path) -> dict[str, Any]:
    return {"kind": "search", **SearchReport.load(path).model_dump(mode="json")}


def _inspect_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, ArtifactError))
    except (ArtifactError, ValueError, RecursionError):
        content = None
    if isinstance(content, Mapping) and "plan_format" in content:
        return {"kind": "plan", **_plan_facts(path)}
    if isinstance(content, Mapping) and "profile_format" in content:
        return {"kind": "profile", **Profile.load(path).model_dump(mode="json")}
    if isinstance(content, Mapping) and "costs_format" in content:
        return {"kind": "measured costs", **MeasuredCosts.load(path).model_dump(mode="json")}
    if isinstance(content, Mapping) and "search_format" in content:
        return _inspect_search(path)
    folder = path.absolute().parent
    of_model = f", such as {folder}" if is_file(folder / "config.json") else ""
    raise VtcompressError(
        f"{path}: no plan, profile or measured costs; give one of these files or a folder{of_model}"
    )
