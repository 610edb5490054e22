"""Problems told by the files and keys that a model's folder has, not by transformers' names for them.

transformers knows some keys by several names and places, and fills in what a file leaves out. Families tell a
problem by the newest name; here it gets the one that stands in the file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.disk.opening import read_utf8
from compressor.errors import ModelError
from compressor.families.folder import CONFIG

PROCESSOR = "processor_config.json"
OLDER_IMAGES = "preprocessor_config.json"
IMAGES = "image_processor"

IMAGE_FILE = "the image processor"
"""What a line begins with that is about an image processor's file, whichever a folder has."""

OLDER = (
    (r"\bdtype$", "torch_dtype"),
    (r"\bimage_token_id$", "image_token_index"),
    (r"\bimage_token_index$", "image_token_id"),
    (r"^text_config\.", ""),
    (r"\brope_parameters\.rope_theta$", "rope_theta"),
    (r"\brope_parameters\.rope_type$", "rope_scaling.type"),
    (r"\brope_parameters\b", "rope_scaling"),
)
"""Other names and places of keys that transformers reads as well, behind patterns of the newest."""


@contextmanager
def by_files(folder: Path) -> Iterator[None]:
    """Have problems with a model name its files and keys; each is told once.

    Args:
        folder: of the model.

    Raises:
        ModelError: in place of another.
    """
    try:
        yield
    except ModelError as error:
        told = dict.fromkeys(_told(line, folder) for line in error.problems)
        raise ModelError(told) from error.__cause__


def saved_in(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file; empty if there is no such file, or none in it."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_utf8(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def image_file(folder: Path) -> str:
    """Return the file that configures a model's image processor, and the section in it, for errors."""
    newer = folder / PROCESSOR
    if isinstance(saved_in(newer).get(IMAGES), dict):
        return f"{newer}: {IMAGES}"
    older = folder / OLDER_IMAGES
    return str(older if older.is_file() else newer)


def _told(line: str, folder: Path) -> str:
    if line.startswith(f"{IMAGE_FILE}: "):
        return image_file(folder) + line.removeprefix(IMAGE_FILE)
    if line.startswith(f"{PROCESSOR}: "):
        return f"{folder / line}"
    config = f"{folder / CONFIG}: "
    key = line.removeprefix(config).partition(":")[0]
    if not line.startswith(config) or " " in key:
        return line
    return config + _as_written(key, saved_in(folder / CONFIG)) + line[len(config) + len(key) :]


def _as_written(key: str, raw: Mapping[str, Any]) -> str:
    """Return the name and place of a dotted key that a configuration has; the key, if it has none of them."""
    names = [key]
    for pattern, older in OLDER:
        names += [re.sub(pattern, older, name) for name in names if re.search(pattern, name)]
    return next((name for name in names if _has(raw, name)), key)


def _has(raw: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return False
        raw = raw[part]
    return True
