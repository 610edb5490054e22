"""Applies one method of a recipe to the plan so far."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from compressor.disk.gate_file import GateFile
from compressor.methods import shortv
from compressor.methods import visual_exit as vtw
from compressor.methods.dyvte import rule as dyvte
from compressor.methods.dyvte.method import QUANTILE, gate_candidates, gate_file
from compressor.methods.entries import DyVTE, Method, ShortV, VisualExit, Yopo
from compressor.methods.yopo.head_mask import MaskReader
from compressor.methods.yopo.method import cut, measures_for
from compressor.plan.cost import predicted_speedup
from compressor.plan.edits import freeze, leave
from compressor.plan.plan import Gates, Plan
from compressor.profile import Measure, Profile
from compressor.schema.values import layer_at


class CannotError(Exception):
    """A method that cannot be applied; each argument is a problem of the plan."""


@dataclass(frozen=True)
class Step:
    """Applies one method to the plan so far.

    Attributes:
        where: the method's place in the recipe.
        plan: what the methods before it made.
        profile: of the calibration.
        masks: reads a head mask.
        recipe_format: of the recipe.
        later: methods that are applied afterwards, with their places; a speed-up is that of them all.
    """

    where: str
    plan: Plan
    profile: Profile | None
    masks: MaskReader
    recipe_format: int
    later: tuple[tuple[str, Method], ...] = ()

    def made(self, method: Method) -> Plan:
        """Return the plan with the method applied.

        Raises:
            CannotError: it cannot be.
            GatesError: gates that are missing or do not fit.
        """
        if isinstance(method, ShortV):
            return freeze(self.plan, self.shortv(method), "shortv")
        if isinstance(method, VisualExit):
            return leave(self.plan, self.visual_exit(method), "vtw")
        return self.dyvte(method) if isinstance(method, DyVTE) else self.yopo(method)

    def shortv(self, method: ShortV) -> tuple[int, ...]:
        """Return the layers to freeze; a share is one of the layers that can be frozen."""
        if method.layers is not None:
            return method.layers
        contribution = self._measured("layer_contribution").layer_contribution()
        layers = self.plan.layers
        able = [layer.index for layer in layers if layer.visual == "update"]
        whole = len(able)
        if self.recipe_format == 1:  # dead layers are chosen too, and a share is one of all layers
            able, whole = [layer.index for layer in layers if not layer.exited], len(layers)
        order = shortv.ranking(contribution, able)
        if method.frozen is not None:
            return order[: shortv.rounded(method.frozen, whole)]
        wanted = method.speedup or 1.0

        def speedup_of(layers: Sequence[int]) -> float:
            return predicted_speedup(freeze(self.plan, layers, "shortv"))

        chosen = shortv.for_speedup(order, wanted, speedup_of)
        if chosen is None:
            every = f"freezing all {len(able)} layers that can be frozen"
            raise self._out_of_reach(wanted, every, speedup_of(able))
        return chosen

    def visual_exit(self, method: VisualExit) -> int:
        """Return the first layer without visual rows."""
        layers = len(self.plan.layers)
        if method.layer is not None:
            return layer_at(method.layer, layers)
        if method.max_kl is not None:
            first = method.first_layer or vtw.FIRST_LAYER
            exit_kl = self._measured("exit_kl").exit_kl()
            found = vtw.smallest_within(exit_kl, method.max_kl, first)
            if found is None:
                raise self._no_exit(method.max_kl, exit_kl, first)
            return found
        wanted = method.speedup or 1.0

        def speedup_of(layer: int) -> float:
            return predicted_speedup(self._with_later(leave(self.plan, layer, "vtw")))

        found = vtw.for_speedup(layers, wanted, speedup_of)
        if found is None:
            raise self._out_of_reach(wanted, "leaving before layer 1", speedup_of(1))
        return found

    def _with_later(self, plan: Plan) -> Plan:
        """Return a plan with the later methods applied that seek no speed-up of their own."""
        for where, method in self.later:
            if isinstance(method, ShortV) and method.speedup is not None:
                continue
            # What cannot be applied is said when its own turn comes.
            with suppress(CannotError):
                plan = replace(self, where=where, plan=plan, later=()).made(method)
        return plan

    def yopo(self, method: Yopo) -> Plan:
        """Return the plan with visual tokens doing less."""
        missing = []
        for measure in measures_for(method):
            try:
                self._measured(measure)
            except CannotError as reason:
                missing.append(str(reason))
        if missing:
            raise CannotError(*missing)
        plan = self.plan
        if method.off_from is not None and method.semantics == "removed":
            plan = leave(plan, layer_at(method.off_from, len(plan.layers)), "yopo")
        return cut(plan, method, self._measured, self.masks)

    def dyvte(self, method: DyVTE) -> Plan:
        """Return the plan with gates, or with the fixed exit that they give."""
        file = gate_file(method, self.plan.model, self.plan.model_digest)
        candidates = gate_candidates(method, len(self.plan.layers))
        fired, unfired = self._exits(file, candidates, required=method.exit == "baked")
        if method.exit != "baked":
            gates = Gates(
                candidates=candidates,
                mode=method.exit,
                width=file.width,
                digest=file.digest,
                fired=fired,
                unfired=unfired,
            )
            return Plan.model_validate({**dict(self.plan), "gates": gates})
        quantile = QUANTILE if method.quantile is None else method.quantile
        layer = dyvte.baked_exit(fired, unfired, candidates, quantile)
        if layer is None:
            total = sum(fired) + unfired
            raise CannotError(
                f"{self.where}.quantile: {quantile:g} is out of reach; gates fire in {sum(fired)} of {total} "
                "calibration prompts: lower the quantile, or use exit: dynamic"
            )
        return leave(self.plan, layer, "dyvte")

    def _exits(
        self, file: GateFile, candidates: tuple[int, ...], *, required: bool
    ) -> tuple[tuple[int, ...], int]:
        """Return how many calibration prompts exit after each candidate, and how many never."""
        if not required and (self.profile is None or "gate_margin" not in self.profile.measures):
            return (), 0
        profile = self._measured("gate_margin")
        if profile.gates_digest != file.digest:
            raise CannotError(
                f"{self.where}: the profile was measured with other gates; calibrate anew"
            )
        if missing := [c for c in candidates if c not in profile.gate_layers]:
            raise CannotError(
                f"{self.where}: the profile has no gates of the layers {', '.join(map(str, missing))}; "
                "calibrate anew"
            )
        places = [profile.gate_layers.index(c) for c in candidates]
        exits = [
            dyvte.first_to_fire([sample.gate_margin[p] for p in places], candidates)
            for sample in profile.samples
        ]
        return dyvte.histogram(exits, candidates)

    def _measured(self, measure: Measure) -> Profile:
        """Return the profile if it is complete and holds the measure."""
        profile = self.profile
        if profile is not None and profile.complete and measure in profile.measures:
            return profile
        if profile is None:
            state = "there is no profile"
        elif profile.complete:
            state = f"the profile has no {measure}"
        else:
            state = f"there is a profile of {len(profile.samples)} of {profile.total} samples"
        words: dict[Measure, tuple[str, str]] = {
            "layer_contribution": ("layers by contribution", ", or list the layers"),
            "exit_kl": ("the exit by its KL", ", or give the layer"),
            "gate_margin": ("the exit by where gates fire", ""),
            "head_score": ("heads by score", ", or give a mask"),
            "neuron_activity": ("neurons by activation", ", or take the first ones"),
        }
        by, otherwise = words[measure]
        raise CannotError(
            f"{self.where}: chooses {by}, but {state}; run `vtcompress calibrate` first{otherwise}"
        )

    def _out_of_reach(self, wanted: float, what: str, most: float) -> CannotError:
        # Rounded down, so that the figure named is one that can be asked for.
        reached = math.floor(100 * most) / 100
        return CannotError(
            f"{self.where}.speedup: {wanted:g} is out of reach; {what} gives {reached:.2f} "
            f"on {self.plan.visual} visual and {self.plan.workload.text} text rows"
        )

    def _no_exit(self, bound: float, exit_kl: Sequence[float], first: int) -> CannotError:
        if first >= len(exit_kl):
            return CannotError(
                f"{self.where}.first_layer: {first} is outside 1..{len(exit_kl) - 1}; the model has "
                f"{len(exit_kl)} layers"
            )
        best = min(range(first, len(exit_kl)), key=lambda k: exit_kl[k])
        return CannotError(
            f"{self.where}.max_kl: no layer from {first} on is within {bound:g}; the best is layer {best} "
            f"with a mean KL of {exit_kl[best]:.3g}: allow that much, or do without an exit"
        )
