"""Shared fixtures: tiny models are made once a session."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread a process: the tests run side by side, and tiny matrices gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the name of a variant to its model folder."""
    from tests.models import VARIANTS, make_llava

    made: dict[str, Path] = {}

    def get(name: str = "clip+llama") -> Path:
        if name not in made:
            made[name] = make_llava(tmp_path_factory.mktemp("llava"), VARIANTS[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a jsonl file of six questions with pictures beside it."""
    from tests.models import make_questions

    return make_questions(tmp_path_factory.mktemp("questions"))
