"""JSON files of a model's folder."""

import json
from pathlib import Path
from typing import Any

from compressor.disk.files import read_text
from compressor.errors import ModelError


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ModelError: the file cannot be read, is not JSON, or is JSON of another kind.
    """
    text = read_text(path, ModelError)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError([f"{path}: is not valid JSON ({error}); save the model again"]) from error
    if not isinstance(value, dict):
        raise ModelError([f"{path}: holds a JSON {type(value).__name__}, not an object"])
    return value


def optional_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is no such file.

    Raises:
        ModelError: as `read_json_object`.
    """
    return read_json_object(path) if path.is_file() else {}
