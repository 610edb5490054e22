"""Methods whose routers choose which visual rows run a layer: what is common to all of them."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from compressor.contract.least_squares import evenly, linear_map
from compressor.contract.method import CannotError, Claim, Evidence, Files, Method, Trait, Turn
from compressor.disk.router_file import RouterFile
from compressor.errors import RoutersError
from compressor.facts import ModelFacts
from compressor.plan.edits import run_some
from compressor.plan.kept import Running, rows_of_share, why_no_tiles
from compressor.plan.plan import Plan
from compressor.schema.values import PartOf, WeightsPath

if TYPE_CHECKING:
    from torch import Tensor

NO_ROUTERS = (
    "the recipe names no routers, and none come with vtcompress; give the file of those that were trained "
    "for this model, or train them with `vtcompress train-parts`"
)
ROWS_A_PROMPT = 16
"""Visual rows, and text rows, of each prompt that a router starts from."""


class RoutedMethod(Method):
    """A method that lets k of every n visual rows run some layers, by the weights that trained routers give.

    Attributes:
        outputs: numbers that a router gives of a row.
        within: whether rows compete with all visual ones of a call, or with those of their own tile.
        routers: safetensors file of the routers; see `compressor.disk.router_file`.
        keep: share of the visual rows that runs such a layer, above 0 and below 1.
    """

    turn: ClassVar[Turn] = Turn.RUN
    weights_key: ClassVar[str] = "routers"
    learns: ClassVar[str] = "routers"
    # Small: rows that run are told apart by small differences of their weights.
    learned_rate: ClassVar[float] = 0.002
    outputs: ClassVar[int]
    within: ClassVar[Literal["call", "tile"]]

    routers: WeightsPath | None = None
    keep: PartOf

    @classmethod
    def claims(cls, keys: Mapping[str, Any]) -> tuple[Claim, ...]:  # noqa: ARG003 - whatever they say
        """Return that it chooses which rows run layers."""
        return (Claim(Trait.RUNNING, cls.name),)

    def router_file(
        self,
        facts: ModelFacts,
        model_digest: str | None,
        layers: Sequence[int] = (),
        files: Files | None = None,
    ) -> RouterFile:
        """Return the file of routers, checked against the model; see `RouterFile.check`.

        Args:
            facts: of the model.
            model_digest: likewise.
            layers: likewise.
            files: reads it; None: anew.

        Raises:
            RoutersError: none is named, it is missing, or it does not fit.
        """
        if self.routers is None:
            raise RoutersError([f"{self.name}.routers: {NO_ROUTERS}"])
        file = (files or Files()).read(RouterFile.read, self.routers)
        file.check(facts.decoder.hidden, self.outputs, model_digest, layers)
        return file

    def problems(self, facts: ModelFacts, evidence: Evidence) -> list[str]:
        """Return that routers are missing or do not fit, or that pictures have rows of their own."""
        found = []
        if self.within == "tile" and (reason := why_no_tiles(facts)) is not None:
            found.append(f"{evidence.where}.keep: {reason}; leave {self.name} out")
        if self.routers is None:
            return [*found, f"{evidence.where}.routers: {NO_ROUTERS}"]
        try:
            self.router_file(facts, None, files=evidence.files)
        except RoutersError as error:
            found += error.problems
        return found

    def check_weights(self, facts: ModelFacts, model_digest: str) -> None:
        """See `Method.check_weights`."""
        self.router_file(facts, model_digest)

    def learned_shapes(self, facts: ModelFacts) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of a router of every layer; the plan's layers have one."""
        shape = (self.outputs, facts.decoder.hidden)
        return {f"layers.{i}.router.weight": shape for i in range(facts.decoder.layers)}

    def all_weighed_one(self, direction: "Tensor") -> "Tensor":
        """Return the router [outputs, D] by which rows weigh 1, or nearly: where a training starts.

        Args:
            direction: [D], whose product with each row is nearly 1.

        Raises:
            NotImplementedError: routers give several numbers of a row, and the method does not say.
        """
        if self.outputs > 1:
            raise NotImplementedError(f"{self.name} does not say by which router rows weigh 1")
        return direction[None]

    def learned_start(
        self, passes: Iterable[Any], shapes: Mapping[str, tuple[int, ...]], seed: int
    ) -> "Mapping[str, Tensor]":
        """Return routers by which all rows weigh nearly 1, by least squares: layers do what they did."""
        import torch

        del seed  # nothing is drawn
        layers = {int(name.split(".")[1]): name for name in shapes}
        read: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        rule = self.run_rule()
        for full in passes:
            for layer, rows in read.items():
                kinds = (full.visual[layer], full.text[layer])[: 2 if rule.scales == "mlp" else 1]
                taken = torch.cat([evenly(kind[0], ROWS_A_PROMPT) for kind in kinds])
                normed = full.decoder.layers[layer].input_norm(taken) if rule.normed else taken
                rows.append(normed.float().cpu())
        found = {}
        for layer, name in layers.items():
            every = torch.cat(read[layer])
            found[name] = self.all_weighed_one(linear_map(every, torch.ones(len(every), 1))[0])
        return found

    @abstractmethod
    def layers_run(self, plan: Plan, evidence: Evidence) -> Sequence[int]:
        """Return the layers that some visual rows run alone.

        Raises:
            CannotError: none can be chosen.
        """

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with some visual rows running the layers alone."""
        layers = self.layers_run(plan, evidence)
        of = plan.rows_kept or plan.model.tile_rows
        count = rows_of_share(self.keep, of)
        if not count:
            raise CannotError(f"{evidence.where}.keep: {self.keep:g} of {of} visual tokens is none")
        file = self.router_file(plan.model, plan.model_digest, layers, evidence.files)
        run = Running(
            count=count,
            of=of,
            by=self.name,
            # Layers are the plan's own; the file goes by its digest: another machine has it elsewhere.
            asked={"keep": self.keep},
            within=self.within,
            outputs=self.outputs,
            weights=file.digest,
        )
        return run_some(plan, dict.fromkeys(layers, run))
