"""A cascade: attacks in order, each on what those before it have left standing."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustgen.attacks.search import Found, Remaining, Search, run
from robustgen.attacks.victim import MakeVictim, Victim
from robustgen.attacks.victims import said, usual_view
from robustgen.audit import AUDIT, audited, repeats
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch, serving
from robustgen.draws import Draws
from robustgen.perturb import Attack, Perturbed
from robustgen.threat import ThreatModel


class Stage(NamedTuple):
    """One attack of a cascade: its name in ``broken_by``, its search, and how it sees the model."""

    name: str
    search: Search[Any]
    victim: MakeVictim = usual_view


class Cascade(Attack):
    """Attacks in order, each from the clean pictures on those samples that are still classified right.

    ``broken_by`` names the stage that broke a sample. The clean picture comes back where no stage
    did, and where it was wrong from the start.

    Unless ``thorough``, jobs that will not arrive end early (early_stopping.py), but never those of a
    stochastic model. Where jobs may end early, or gradients are in bfloat16, an audit follows: every 8th
    survivor of the batch (at least 4) goes again, in full and in float32, through the stages that
    ``audit.repeats`` names.
    """

    def __init__(self, threat: ThreatModel, names: tuple[str, ...], *, thorough: bool = True) -> None:
        super().__init__(threat)
        self.names = names
        self.thorough = thorough

    @abstractmethod
    def stages(self, model: Classifier) -> list[Stage]:
        """The stages for a model, in the order of ``names``; one that it cannot meet is left out."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        found = Found.nothing(x)
        with torch.no_grad():
            remaining = Remaining(found.standing(model, x, y, said(model, x)))
        stages = self.stages(model)

        def attack(stage: Stage, name: str, place: int, left: Tensor, thorough: bool) -> None:
            width = model.batch if isinstance(model, FixedBatch) else None
            streams = draws.at(left, place)
            with serving(model, left):
                result = run(
                    stage.search, stage.victim(model), x[left], y[left], streams, width=width,
                    thorough=thorough,
                )  # fmt: skip
                if model.stochastic:
                    # The best of many looks was a lucky one: draws that chose nothing say what it is worth.
                    again = said(model, result.images)
                    broken = found.judge(model, left, result.images, again, y[left])
                else:
                    broken = left[result.broken]
                    found.note(broken, result.images[result.broken])
            remaining.fell(broken, name, found)

        thorough = self.thorough or model.stochastic
        for place, stage in enumerate(stages):
            left = remaining.rows()
            if len(left):
                attack(stage, stage.name, place, left, thorough)
        if not thorough or (isinstance(model, FixedBatch) and model.bfloat16_gradients):
            left = remaining.rows()
            left = left[audited(len(left))]
            for place, stage in enumerate(stages):
                again = left[remaining.robust[left]]
                if repeats(stage.name, early=not thorough) and len(again):
                    attack(_in_float32(stage), AUDIT, len(stages) + place, again, True)
        return Perturbed(found.images, remaining.broken_by)


def _in_float32(stage: Stage) -> Stage:
    """The same stage, whose gradients are not low."""

    def view(model: Classifier) -> Victim:
        victim = stage.victim(model)
        victim.low = False
        return victim

    return stage._replace(victim=view)
