"""The drawn profile, read back from its SVG: what stands at which layer, and how high."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from compressor.calibration.plot import CHOSEN, KEPT, draw_profile
from compressor.plan.layer import LayerPlan
from compressor.profile import SampleScore
from tests import facts

NAME = "{http://www.w3.org/2000/svg}"
# The first of 24 neurons has as much activation as all others together.
ACTIVITY = ((23.0, *(1.0,) * 23),) * 6


def bars_and_crosses(folder, *layers):
    """Return middle and height of each bar and the places of crosses, in points, and all that is written."""
    profile = facts.profile([[0.0] * 6]).model_copy(
        update={
            "samples": (SampleScore(visual=12, text=9),),
            "measures": ("neuron_activity",),
            "neuron_activity": ACTIVITY,
        }
    )
    plan = facts.plan().model_copy(update={"layers": layers})
    svg = draw_profile(profile, plan, folder / "p")[1].read_text(encoding="utf-8")
    axes = next(e for e in ET.fromstring(svg).iter(f"{NAME}g") if e.get("id") == "axes_1")
    bars = []
    for path in axes.iter(f"{NAME}path"):
        # What the legend shows is not clipped.
        if KEPT in (path.get("style") or "") and path.get("clip-path"):
            numbers = [float(n) for n in re.findall(r"[\d.]+", path.get("d"))]
            bars.append(
                (
                    (min(numbers[::2]) + max(numbers[::2])) / 2,
                    max(numbers[1::2]) - min(numbers[1::2]),
                )
            )
    places = [
        (float(e.get("x")), float(e.get("y")))
        for e in axes.iter(f"{NAME}use")
        if CHOSEN in (e.get("style") or "")
    ]
    floor = max((y for _, y in places), default=0)
    crosses = [x for x, y in places if y == floor]
    return bars, crosses, re.findall("<!-- (.*?) -->", svg)


def test_layers_without_an_mlp_on_visual_tokens_have_no_share_but_a_cross(tmp_path):
    bars, crosses, said = bars_and_crosses(
        tmp_path,
        LayerPlan(index=0),
        LayerPlan(index=1, neurons=(0,)),
        LayerPlan(index=2, visual="frozen", reason="shortv"),
        LayerPlan(index=3, visual="frozen", reason="dead", groups=()),
        LayerPlan(index=4, visual="exited", reason="yopo"),
        LayerPlan(index=5, visual="exited", reason="yopo"),
    )
    # All neurons are all of the activation, the first one is half of it.
    (first, full), (second, half) = bars
    assert half / full == pytest.approx(0.5, abs=0.01)
    step = second - first
    assert crosses == pytest.approx([first + step * layer for layer in (2, 3, 4, 5)], abs=0.1)
    assert {"visual tokens run the MLP", "no visual tokens in the MLP"} <= set(said)


def test_masked_layers_run_the_mlp_and_a_plan_in_which_all_do_has_no_crosses(tmp_path):
    masked = (LayerPlan(index=i, masked=True, off=True) for i in range(3, 6))
    bars, crosses, said = bars_and_crosses(
        tmp_path, *(LayerPlan(index=i, neurons=(0,)) for i in range(3)), *masked
    )
    assert [height / bars[-1][1] for _, height in bars] == pytest.approx(
        [0.5] * 3 + [1.0] * 3, abs=0.01
    )
    assert len({round(b - a, 1) for (a, _), (b, _) in pairwise(bars)}) == 1
    assert crosses == []
    assert "no visual tokens in the MLP" not in said
