"""The stage that tells what a folder or file is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.disk.files import is_file, is_folder, read_text
from compressor.disk.paths import at_home, check_path
from compressor.errors import ArtifactError, VtcompressError
from compressor.plan.plan import Plan
from compressor.profile import Profile
from export.artifact.artifact import PLAN_FILE, Artifact
from vtcompress.shipped import PathLike
from vtcompress.stages.checks.prompts import processor_problems
from vtcompress.stages.inputs import (
    require_compress,
)


def inspect(path: PathLike) -> dict[str, Any]:
    """Tell what a model folder, compressed folder, artifact, plan or profile is, without loading weights.

    Returns:
        A JSON-like mapping; `kind` says which of them it is. Of a model `problems` holds what is wrong with
        its processor and which weights of a folder are not there, if anything is.

    Raises:
        VtcompressError: none of them.
    """
    model = at_home(str(path))  # as it was given: `Path` takes `./nope` for `nope`
    path = Path(model)
    check_path(path)
    if is_folder(path) and is_file(path / "manifest.json"):
        manifest = Artifact.open(path, verify=False).manifest
        return {"kind": "artifact", **manifest.model_dump(mode="json")}
    if is_folder(path) and is_file(path / PLAN_FILE):
        return {"kind": "compressed model", **Plan.load(path / PLAN_FILE).model_dump(mode="json")}
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
    return facts | ({"problems": list(problems)} if problems else {})


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
            f"(manifest.json), what `compress` wrote ({PLAN_FILE}), or the file of a plan or profile"
        )


def _inspect_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, ArtifactError))
    except (ArtifactError, ValueError, RecursionError):
        content = None
    if isinstance(content, Mapping) and "plan_format" in content:
        return {"kind": "plan", **Plan.load(path).model_dump(mode="json")}
    if isinstance(content, Mapping) and "profile_format" in content:
        return {"kind": "profile", **Profile.load(path).model_dump(mode="json")}
    folder = path.absolute().parent
    of_model = f", such as {folder}" if is_file(folder / "config.json") else ""
    raise VtcompressError(
        f"{path}: neither a plan nor a profile; give one of these files or a folder{of_model}"
    )
