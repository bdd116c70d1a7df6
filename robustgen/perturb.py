"""What may happen to an image before the model sees it: nothing, a fixed map, or an attack.

An evaluation is data x perturbation x readout; this module defines the interfaces of the last two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.threat import ThreatModel


class Perturbed(NamedTuple):
    """What a perturbation returns.

    ``images``: shaped like the input. ``broken_by``: for each sample, the stage of a cascade that broke it,
    None where it survived; only from attacks that have stages. ``out_of_budget`` (batch,): where the attack
    left its budget or returned NaN, and ``images`` holds the clean image instead; only from attacks that can.
    """

    images: Tensor
    broken_by: list[str | None] | None = None
    out_of_budget: Tensor | None = None


class Perturbation(ABC):
    """A map of images that may query the model: ``perturbation(model, x, y, draws)``.

    ``name``: its name in tables; ``reference``: the paper or package it comes from. ``seeded_by_chunk``: true
    for outside attacks that draw from the global random generators; rerunning the same chunks is then
    bit-identical, but chunking the data differently is not.
    """

    name: str
    reference: str = ""
    seeded_by_chunk: bool = False

    @abstractmethod
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        """Perturb images x (batch, channels, height, width) with labels y (batch,)."""


class Identity(Perturbation):
    """Returns the image unchanged."""

    name = "identity"

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        return Perturbed(x)


class Attack(Perturbation):
    """A perturbation that searches within ``threat`` for an image that the model misclassifies.

    Its output is never trusted: ``enforce_budget`` projects it, and the model is asked again.
    ``stage_names``: its stages in order, as they appear in ``broken_by``. ``thorough``: whether every part
    of the search runs to its end.
    """

    stage_names: tuple[str, ...] = ()
    thorough: bool = True

    def __init__(self, threat: ThreatModel) -> None:
        self.threat = threat

    def detail(self) -> dict[str, Any]:
        """The attack's entry in run.json. Stored rows are reused only where it is the same."""
        stages = self.stage_names if len(self.stage_names) > 1 else ()  # a single attack is no cascade
        return {
            "attack": self.name, "norm": self.threat.norm, "eps": self.threat.eps, "cascade": [*stages],
        }  # fmt: skip


class Readout(ABC):
    """A measurement that needs a table of its own, stored with the chunk, beside the rows."""

    name: str

    @abstractmethod
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pa.Table:
        """Measure the model at images x with labels y. The first column is sample_id."""


class BudgetCheck(NamedTuple):
    """Images after ``enforce_budget``.

    ``images`` (batch, ...): inside the box and the norm ball; ``within_budget`` (batch,): whether they were
    before; ``distance`` (batch,): their distance from the clean images in the threat's norm, in pixel units.
    """

    images: Tensor
    within_budget: Tensor
    distance: Tensor


def enforce_budget(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> BudgetCheck:
    """Project what an attack returned for the clean images x onto the threat model, as float32."""
    if x_adv.shape != x.shape:
        raise UserError(
            "an attack returned images of another shape", expected=tuple(x.shape), got=tuple(x_adv.shape)
        )
    x_adv = x_adv.detach().to(dtype=torch.float32, device=x.device)
    if not bool(torch.isfinite(x_adv).all()):
        raise UserError("an attack returned NaN or infinite pixels", remedy="'robustgen check MODEL'")
    within = threat.contains(x, x_adv)
    # An excess that rounding explains is kept, so that the stored image is the one the attack found.
    images = torch.where(within.view(-1, 1, 1, 1), x_adv.clamp(*threat.box), threat.project(x, x_adv))
    return BudgetCheck(images, within, threat.distance(x, images))
