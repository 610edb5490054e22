"""What tests of gates in training share: a model, answered questions, short trainings, ways to stop them."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor.contract.gated import GateTraining
from compressor.families import LoadedModel, load
from compressor.gate_training.training import train_gates
from compressor.methods.dyvte import DyVTE
from compressor.progress import SILENT, Silent
from compressor.recipe import parse_recipe
from compressor.samples.questions import Sample, read_samples
from tests.models import WORDS, make_picture

TRAIN = GateTraining(steps=30, batch=3, learning_rate=0.01, seed=1)
METHOD = DyVTE(gate_width=8, train=TRAIN)
CANDIDATES = (0, 1, 2)


@pytest.fixture(scope="module")
def model(llava: Callable[[str], Path]) -> LoadedModel:
    return load(str(llava("clip+llama")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions; answers of one to three words."""
    folder = tmp_path_factory.mktemp("answered")
    rows = []
    for i in range(12):
        make_picture(folder / f"{i}.png", seed=i)
        words = [WORDS[11 + (i + k) % 9] for k in range(1 + i % 3)]
        row = {"image": f"{i}.png", "question": f"what is {WORDS[10 + i]}", "kind": "xy"[i % 2]}
        rows.append(json.dumps({**row, "answer": " ".join(words)}))
    path = folder / "train.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def samples(data: Path) -> tuple[Sample, ...]:
    return read_samples(data)


def a_training(model, samples, folder: Path, method: DyVTE = METHOD, progress: Any = SILENT):
    folder.mkdir(exist_ok=True)
    return train_gates(model, samples, method, folder / "checkpoint", progress=progress)


class StopAfter(Silent):
    """A progress that interrupts the run after some items, of all its loops together."""

    def __init__(self, count: int) -> None:
        self.left = count

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        del label, total
        for item in items:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield item


def recipe_for(folder: Path, **changes: Any) -> Any:
    given = {"gate_width": 8, "train": {"steps": 3, "batch": 2}, **changes}
    document = {"vtcompress": 1, "model": {"id": str(folder)}, "compress": ({"dyvte": given},)}
    return parse_recipe(document, "test")
