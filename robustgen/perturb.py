"""What is done to a picture before a model is asked: nothing, a fixed map, or an attack.

An evaluation is data x perturbation x readout; the types of the second and third are here.
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
    """Pictures after a perturbation, shape as before; ``broken_by`` names the attack of a cascade
    that broke each sample (None where it survived), for attacks that know it. ``strayed`` (batch,): where
    the attack left its budget and the clean picture stands instead, for attacks that may."""

    images: Tensor
    broken_by: list[str | None] | None = None
    strayed: Tensor | None = None


class Perturbation(ABC):
    """A map of pictures that may look at the model: ``perturbation(model, x, y, draws)``.

    ``name`` says what it is in tables, ``reference`` where it comes from. ``seeded_by_chunk`` is true
    for outside attacks that draw from the global generator: a rerun is bit-equal, another chunking
    is not.
    """

    name: str
    reference: str = ""
    seeded_by_chunk: bool = False

    @abstractmethod
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        """Perturb pictures x (batch, channels, height, width) with labels y (batch,)."""


class Identity(Perturbation):
    """The picture as it is."""

    name = "identity"

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        return Perturbed(x)


class Attack(Perturbation):
    """A perturbation that seeks, within ``threat``, a picture that the model gets wrong.

    What it returns is never trusted: ``verify`` projects it, and the model is asked again. ``names``: its
    stages in order, as ``broken_by`` names them; ``thorough``: whether every job of it runs to its end.
    """

    names: tuple[str, ...] = ()
    thorough: bool = True

    def __init__(self, threat: ThreatModel) -> None:
        self.threat = threat

    def detail(self) -> dict[str, Any]:
        """What run.json says of it, whatever it is planned for: rows of another detail are another run's."""
        stages = self.names if len(self.names) > 1 else ()  # a single attack is no cascade
        return {
            "attack": self.name, "norm": self.threat.norm, "eps": self.threat.eps, "cascade": [*stages],
        }  # fmt: skip


class Readout(ABC):
    """A reading that is not one row a sample: a table beside the rows, written by the same chunk."""

    name: str

    @abstractmethod
    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pa.Table:
        """Read the model at pictures x with labels y; the first column is sample_id."""


class Verified(NamedTuple):
    """``images`` (batch, ...) inside box and ball; ``within_budget`` bool (batch,), whether they were before;
    ``distance`` (batch,) from the clean ones in the threat's norm, in pixel units."""

    images: Tensor
    within_budget: Tensor
    distance: Tensor


def verify(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> Verified:
    """Check what an attack returned and project it to where it should have stayed."""
    if x_adv.shape != x.shape:
        raise UserError("an attack changed the shape of its pictures", expected=x.shape, got=x_adv.shape)
    x_adv = x_adv.detach().to(dtype=torch.float32, device=x.device)
    if not bool(torch.isfinite(x_adv).all()):
        raise UserError("an attack returned NaN or infinite pixels", remedy="'robustgen check MODEL'")
    within = threat.contains(x, x_adv)
    # Rounding alone is left as it is, so that what is stored is what the attack found.
    images = torch.where(within.view(-1, 1, 1, 1), x_adv.clamp(*threat.box), threat.project(x, x_adv))
    return Verified(images, within, threat.distance(x, images))
