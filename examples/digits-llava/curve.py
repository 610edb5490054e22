"""Draw ``training-curve.svg`` from ``training-log.jsonl``: validation exact match over time."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
from digits import KINDS, MAX_DIGITS

HERE = Path(__file__).parent


def main() -> None:
    """Draw the curve of each kind and of their mean."""
    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "digits-llava", "svg.fonttype": "none"})
    lines = (HERE / "training-log.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if any(row[kind] for kind in KINDS)]
    minutes = [row["minutes"] for row in rows]
    figure, axes = plt.subplots(figsize=(8, 4))
    for kind in KINDS:
        axes.plot(minutes, [100 * row[kind] for row in rows], label=kind, linewidth=1)
    axes.plot(minutes, [100 * row["overall"] for row in rows], "k", label="overall", linewidth=2)
    grown = next((row["minutes"] for row in rows if row["most_digits"] == MAX_DIGITS), minutes[-1])
    axes.axvspan(minutes[0], grown, color="0.93", label="pictures still growing")
    axes.set(xlabel="minutes of training", ylabel="validation exact match, %", ylim=(0, 101))
    axes.grid(color="0.9")
    axes.legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(HERE / "training-curve.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
