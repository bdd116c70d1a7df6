"""A cascade: attacks in order, each on what those before it have left standing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from robustgen.attacks.search import Search, run
from robustgen.attacks.victim import Victim
from robustgen.classifiers.base import Classifier, FixedBatch, serving
from robustgen.draws import Draws
from robustgen.perturb import Attack, Perturbed


class Stage(NamedTuple):
    """One attack of a cascade: its name in ``broken_by``, its search, and how it sees the model."""

    name: str
    search: Search
    victim: Callable[[Classifier], Victim] = Victim.of


class Cascade(Attack):
    """Attacks in order, each from the clean pictures on those samples that are still classified right.

    ``broken_by`` names the stage that broke a sample. The clean picture comes back where no stage
    did, and where it was wrong from the start.
    """

    names: tuple[str, ...]
    """The stages in order, as ``broken_by`` names them."""

    @abstractmethod
    def stages(self, model: Classifier) -> list[Stage]:
        """The stages for a model, in the order of ``names``; one that it cannot meet is left out."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        found = x.clone()
        broken_by: list[str | None] = [None] * len(x)
        with torch.no_grad():
            robust = model.logits(x).argmax(1) == y
        for stage in self.stages(model):
            left = robust.nonzero().squeeze(1)
            if len(left) == 0:
                break
            place = self.names.index(stage.name)
            width = model.batch if isinstance(model, FixedBatch) else None
            with serving(model, left):
                result = run(
                    stage.search, stage.victim(model), x[left], y[left], draws.at(left, place), width=width
                )
            broken = left[result.broken]
            found[broken] = result.images[result.broken]
            robust[broken] = False
            for i in broken.tolist():
                broken_by[i] = stage.name
        return Perturbed(found, broken_by)
