"""Pictures of handwritten digits in a grid, and the questions that are asked about them.

Letters in shapes: N digits in a pool, B pictures, R = C = 4 rows and columns of the grid.

A picture is 64x64 RGB: 4x4 cells of 16x16 pixels, each empty or holding one MNIST digit. Rows and
columns are numbered from 1, from the top left. The six kinds of question, and what is answered:

========  ==============================  ==========================================
kind      question                        answer
========  ==============================  ==========================================
cell      what is at row 2 column 3 ?     the digit, or ``-`` for an empty cell
count     how many 7 ?                    a number
row       which row has 7 ?               1 to 4; asked only of a digit present once
column    which column has 7 ?            1 to 4; asked only of a digit present once
exist     is there a 7 ?                  ``yes`` or ``no``
read      read row 2 .                    four words, for example ``- 3 - 7``
========  ==============================  ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

GRID = 4
CELL = 16
GLYPH = 14
IMAGE_SIZE = GRID * CELL
EMPTY = -1
MIN_DIGITS, MAX_DIGITS = 3, 11
KINDS = ("cell", "count", "row", "column", "exist", "read")

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
VOCABULARY = (
    *(PAD, BOS, EOS, UNK, IMAGE),
    *("SYSTEM:", "USER:", "ASSISTANT:"),
    *(str(digit) for digit in range(10)),
    *("-", "?", ".", "what", "is", "at", "row", "column", "how", "many", "which", "has"),
    *("there", "a", "yes", "no", "read", "the"),
)
"""Every word of the model, its index being its id."""


@dataclass(frozen=True)
class Question:
    """One question about one picture, with its answer, both as words separated by single spaces."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class DigitPool:
    """Glyphs to draw from: ``glyphs`` uint8 [N, GLYPH, GLYPH] and, per digit, their indices."""

    glyphs: NDArray[np.uint8]
    by_digit: tuple[NDArray[np.int64], ...]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an MNIST ``idx`` file of unsigned bytes."""
    raw = path.read_bytes()
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, offset=4).astype(int)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load_pool(
    folder: Path, split: str, span: slice = slice(None), variants: int = 0, seed: int = 0
) -> DigitPool:
    """Return the digits of one MNIST split, shrunk to GLYPH pixels.

    Args:
        folder: where the four ``*-ubyte`` files lie.
        split: ``train`` or ``t10k`` (the test split).
        span: which digits of the split to keep.
        variants: how many slightly turned and scaled copies of each digit to add.
        seed: seed of those turns.
    """
    images = read_idx(folder / f"{split}-images-idx3-ubyte")[span]
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte")[span]
    rng = np.random.default_rng(seed)
    glyphs = [_shrink(image, 0.0, 1.0) for image in images]
    for _ in range(variants):
        angles = rng.uniform(-12, 12, len(images))
        scales = rng.uniform(0.88, 1.1, len(images))
        glyphs += [_shrink(*each) for each in zip(images, angles, scales, strict=True)]
    tiled = np.tile(labels, variants + 1)
    by_digit = tuple(np.flatnonzero(tiled == digit) for digit in range(10))
    return DigitPool(np.stack(glyphs), by_digit)


def _shrink(image: NDArray[np.uint8], angle: float, scale: float) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    if angle:
        picture = picture.rotate(angle, Image.Resampling.BILINEAR)
    margin = 14 - 12 / scale  # the glyph's middle 24 of 28 pixels, at scale 1
    box = (margin, margin, 28 - margin, 28 - margin)
    return np.asarray(picture.resize((GLYPH, GLYPH), Image.Resampling.BOX, box=box))


def sample_grid(rng: np.random.Generator, digits: int) -> NDArray[np.int64]:
    """Return a grid [R, C] of ``digits`` digits, EMPTY elsewhere; at least one digit occurs once.

    The digits come from a random subset of the ten, so that many of them occur several times.
    """
    while True:
        palette = rng.permutation(10)[: rng.integers(3, 11)]
        values = palette[rng.integers(0, len(palette), digits)]
        counts = np.bincount(values, minlength=10)
        if (counts == 1).any() and counts.max() <= 9:
            break
    grid = np.full(GRID * GRID, EMPTY)
    grid[rng.permutation(GRID * GRID)[:digits]] = values
    return grid.reshape(GRID, GRID)


def draw(rng: np.random.Generator, pool: DigitPool, grid: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the picture of a grid: uint8 [IMAGE_SIZE, IMAGE_SIZE, 3], light ink on a dark ground.

    Each digit is another handwriting, moved by up to two pixels inside its cell.
    """
    ink = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 1), np.float32)
    slack = CELL - GLYPH + 1
    for row, column in zip(*np.nonzero(grid != EMPTY), strict=True):
        candidates = pool.by_digit[grid[row, column]]
        glyph = pool.glyphs[candidates[rng.integers(len(candidates))]]
        top = row * CELL + rng.integers(slack)
        left = column * CELL + rng.integers(slack)
        ink[top : top + GLYPH, left : left + GLYPH, 0] = glyph
    ink /= 255
    ground = rng.uniform(0, 40, 3)
    colour = rng.uniform(180, 255, 3)
    return (ground + ink * (colour - ground)).round().astype(np.uint8)


def ask(rng: np.random.Generator, grid: NDArray[np.int64], kind: str) -> Question:
    """Return a random question of ``kind`` about a grid [R, C]."""
    flat = grid.ravel()
    counts = np.bincount(flat[flat != EMPTY], minlength=10)
    if kind == "cell":
        full = rng.random() < 0.7
        index = rng.choice(np.flatnonzero((flat != EMPTY) == full))
        text = f"what is at row {index // GRID + 1} column {index % GRID + 1} ?"
        return Question(kind, text, _word(flat[index]))
    if kind == "read":
        row = rng.integers(GRID)
        return Question(kind, f"read row {row + 1} .", " ".join(map(_word, grid[row])))
    if kind in ("row", "column"):
        digit = rng.choice(np.flatnonzero(counts == 1))
        where = np.argwhere(grid == digit)[0][("row", "column").index(kind)]
        return Question(kind, f"which {kind} has {digit} ?", str(where + 1))
    present = rng.random() < {"count": 0.8, "exist": 0.5}[kind]
    choices = np.flatnonzero((counts > 0) == present)
    digit = rng.choice(choices if len(choices) else np.arange(10))
    if kind == "count":
        return Question(kind, f"how many {digit} ?", str(counts[digit]))
    return Question(kind, f"is there a {digit} ?", "yes" if counts[digit] else "no")


def _word(digit: int) -> str:
    return "-" if digit == EMPTY else str(digit)
