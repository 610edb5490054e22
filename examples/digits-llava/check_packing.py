"""Check that a packed question gets the logits it gets alone, from transformers' own forward pass.

python check_packing.py --mnist FOLDER [--model FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from digits import KINDS, MAX_DIGITS, MIN_DIGITS, load_pool
from fast_forward import FastForward
from packing import PREFIX, QUESTION_TOKENS, pack
from transformers import LlavaForConditionalGeneration

HERE = Path(__file__).parent
TOLERANCE = 1e-3


@torch.no_grad()
def largest_difference(model: LlavaForConditionalGeneration, mnist: Path) -> float:
    """Return the largest difference of any scored logit of eight pictures, all kinds twice."""
    pool = load_pool(mnist, "train", slice(1000))
    batch = pack(np.random.default_rng(0), pool, 8, MIN_DIGITS, MAX_DIGITS, KINDS * 2)
    fast = FastForward(model, compiled=False)
    packed = fast.answer(fast.project(fast.see(batch.pixels)), batch)
    worst, start = 0.0, len(PREFIX)
    for index, kind in enumerate(batch.kinds):
        stop = start + QUESTION_TOKENS[kind]
        alone = torch.cat((batch.ids[:, : len(PREFIX)], batch.ids[:, start:stop]), 1)
        logits = model(input_ids=alone, pixel_values=batch.pixels).logits
        here = batch.segments == index
        worst = max(worst, (logits[:, -int(here.sum()) :] - packed[:, here]).abs().max().item())
        start = stop
    return worst


def main() -> None:
    """Read the command line, print the difference, fail if it is more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    options = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
    worst = largest_difference(model.eval(), options.mnist)
    sys.stdout.write(f"largest difference of a logit: {worst:.2e}\n")
    if worst > TOLERANCE:
        sys.exit("packed questions do not get the logits they get alone")


if __name__ == "__main__":
    main()
