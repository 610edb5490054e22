"""What a method offers to a search: changes of a plan, one at a time, with the method as their reason."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from compressor.contract.measure import Measure
from compressor.contract.method import Evidence
from compressor.facts import ModelFacts
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan


def always(_: Plan) -> bool:
    """Return that a change is worth a try, whatever the workload is."""
    return True


@dataclass(frozen=True)
class LayerTrial:
    """What visual rows may do in one layer.

    Attributes:
        words: for people, and what tells a method's trials apart: `frozen`.
        change: makes it of a layer that updates visual rows.
        reads_grid: whether it goes with all visual rows alone, none of which is left out.
        pays: whether it is worth a try, for the workload of a plan that changes nothing.
    """

    words: str
    change: Callable[[LayerPlan], LayerPlan]
    reads_grid: bool = False
    pays: Callable[[Plan], bool] = always


@dataclass(frozen=True)
class PlanTrial:
    """How visual rows may become fewer, in front of the decoder or at a layer.

    Attributes:
        words: as of `LayerTrial`, without the layer.
        change: makes it of a plan that has no other.
        layer: first layer that fewer visual rows enter; 0: it chooses in front of the decoder.
        leaves: whether none of them enters it.
    """

    words: str
    change: Callable[[Plan], Plan]
    layer: int = 0
    leaves: bool = False


class Offering(ABC):
    """A method whose words of a plan a search may use."""

    @classmethod
    def offers(cls) -> bool:
        """Return whether it offers anything, whatever the model is."""
        return True

    @classmethod
    def tried_by(cls) -> tuple[Measure, ...]:
        """Return what calibration must measure for the trials."""
        return ()

    @classmethod
    @abstractmethod
    def trials(cls, facts: ModelFacts, evidence: Evidence) -> tuple[LayerTrial | PlanTrial, ...]:
        """Return what it offers for a model; nothing where the model rules it out.

        Args:
            facts: of the model.
            evidence: with what `tried_by` asks for.

        Raises:
            CannotError: that was not measured.
        """
