"""What reports say of the layers that ShortV froze: measured, named by hand, or simply all."""

import pytest

from compressor.methods.shortv import ShortV
from export.artifact.manifest import Manifest
from export.report.data import ReportData
from export.report.sections.short import done
from tests import facts


@pytest.mark.parametrize(
    ("method", "frozen", "said"),
    [
        (
            ShortV(layers=(1, 4)),
            (1, 4),
            "Layers 1, 4: named in the recipe, and not measured (method",
        ),
        (
            ShortV(frozen=1.0),
            range(5),
            "Layers 0 to 4: all layers that can be frozen, as the recipe asks for so many (method",
        ),
        (
            ShortV(frozen=0.4),
            (1, 4),
            "Layers 1, 4: of the layers that can be frozen those where leaving out the update of visual "
            "tokens, in one layer alone, changed the prediction of the next token least on 2 calibration "
            "questions (method",
        ),
        (
            ShortV(speedup=1.3),
            (1, 4),
            "changed the prediction of the next token least on 2 calibration",
        ),
    ],
)
def test_least_is_said_only_of_layers_that_were_measured(method, frozen, said):
    plan = facts.plan(frozen, dead=(5,))
    data = ReportData(
        manifest=Manifest(files={}, **facts.manifest_fields(plan)),
        plan=plan,
        profile=facts.profile([[0.1] * 6] * 2),
        methods=(method,),
    )
    text = " ".join(done(data))
    assert said in text
    assert ("least" in text) == (method.layers is None and len(tuple(frozen)) < 5)
    assert "Layer 5: nobody reads" in text
