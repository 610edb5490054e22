"""What the task `vtcompress_digits` needs beside its settings: pictures, and when an answer is right."""

from pathlib import Path
from typing import Any

from PIL import Image

from compressor.samples.scores import exact

DATA = Path(__file__).parent.parent


def of_question(doc: dict[str, Any]) -> list[Image.Image]:
    """Return the question's picture."""
    return [Image.open(DATA / doc["image"]).convert("RGB")]


def exact_match(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score one answer as `vtcompress validate` does."""
    return {"exact_match": float(exact(results[0], doc["answer"]))}
