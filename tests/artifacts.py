"""Artifacts with made-up figures, written without torch: what reports, cards and comparisons read."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compressor.contract.asked import method_words
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.recipe import load_recipe
from export.artifact.artifact import PLAN_FILE, PROFILE_FILE, RECIPE_FILE, write_manifest
from export.checks.stored import COMPRESSED_FILE, ORIGINAL_FILE, SAMPLES_FILE
from export.results.answers import KeptPlaces
from tests import facts

Asked = tuple[str, str, str | None, str, str]
"""Question, kind, right answer, the original's answer, the artifact's answer."""

# The least that is an ONNX graph: a version, and a graph with nothing in it.
GRAPH = b"\x08\x0a\x3a\x00"
RECIPE = "vtcompress: 1\ncompress:\n- shortv:\n    frozen: 0.5\n"


def make_artifact(
    folder: Path,
    *,
    frozen: Iterable[int] = (1, 4),
    dead: Iterable[int] = (5,),
    exit_layer: int | None = None,
    gates: Any = None,
    model: Any = None,
    plan: Plan | None = None,
    recipe: str = RECIPE,
    profile: Profile | None = None,
    asked: Sequence[Asked] = (),
    kept: Sequence[KeptPlaces] = (),
    by_recipe: bool = True,
    **changes: Any,
) -> Path:
    """Write an artifact whose graphs are empty; `changes` go into the manifest.

    A plan may be given instead of what it is made of; `by_recipe`: it says that the recipe made it.
    """
    plan = plan or facts.plan(frozen, dead=dead, exit_layer=exit_layer, gates=gates, model=model)
    plan = plan.model_copy(update={k: v for k, v in changes.items() if k == "model_digest"})
    folder.mkdir(parents=True)
    (folder / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    if by_recipe:
        methods = load_recipe(folder / RECIPE_FILE).methods
        plan = plan.signed(list(map(method_words, methods)), profile.digest if profile else "")
    plan.save(folder / PLAN_FILE)
    if profile is not None:
        profile.save(folder / PROFILE_FILE)
    if asked:
        write_questions(folder, asked, kept)
    fields = facts.manifest_fields(plan, **changes)
    for graph in fields["graphs"]:
        (folder / graph.file).write_bytes(GRAPH)
    write_manifest(folder, **fields)
    return folder


def write_result(folder: Path, **files: str) -> Path:
    """Write a folder that this tool knows as its own, with made-up files."""
    from export.artifact.artifact import write_file_list

    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    write_file_list(folder)
    return folder


def write_questions(folder: Path, asked: Sequence[Asked], kept: Sequence[KeptPlaces] = ()) -> None:
    """Write `validation/` with one picture for all questions; `kept`: of the first ones, what goes on."""
    from tests.models import make_picture

    (folder / "validation" / "images").mkdir(parents=True)
    make_picture(folder / "validation" / "images" / "a.png")
    rows = [
        {"image": ["images/a.png"], "question": q, "answer": right, "kind": kind}
        for q, kind, right, _, _ in asked
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n"
    (folder / SAMPLES_FILE).write_text(lines, encoding="utf-8")
    for name, place in ((ORIGINAL_FILE, 3), (COMPRESSED_FILE, 4)):
        answers: list[dict[str, Any]] = [{"token_ids": [1], "text": row[place]} for row in asked]
        if name == COMPRESSED_FILE:
            for answer, one in zip(answers, kept, strict=False):
                answer["kept"] = [one.model_dump()]
        document = json.dumps({"max_new_tokens": 8, "answers": answers})
        (folder / name).write_text(document, encoding="utf-8")
