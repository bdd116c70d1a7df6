"""Attacks of foolbox (Rauber et al. 2020, doi:10.21105/joss.02607), such as foolbox:LinfPGD."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import foolbox
from foolbox.attacks.base import FixedEpsilonAttack
from torch import Tensor

from robustgen.attacks.outside.base import ClassifierModule, OutsideAttack, options_of
from robustgen.errors import UserError
from robustgen.threat import ThreatModel

RESERVED = ("distance", "constraint", "tensorboard")
"""Parameters that are not options: the threat sets the distance, which has either of two names; logs are
not kept."""


class FoolboxAttack(OutsideAttack):
    """An attack of foolbox with its own defaults. Attacks with a budget get eps; those that minimise the
    distance may stop below eps, and what they return is not clipped."""

    def __init__(self, attack: str, threat: ThreatModel, options: Mapping[str, Any]) -> None:
        title = f"foolbox:{attack}"
        kind = getattr(foolbox.attacks, attack)
        super().__init__(title, threat, options_of(kind, RESERVED, title, options))
        ours = {"distance": getattr(foolbox.distances, threat.norm), "constraint": threat.norm}
        taken = inspect.signature(kind).parameters
        try:
            self.attack = kind(**{key: ours[key] for key in ours if key in taken}, **self.options)
        except ValueError as error:
            raise UserError("foolbox does not accept these options", where=title, got=error) from None
        except ModuleNotFoundError as error:  # Brendel and Bethge's attacks need numba
            raise UserError(
                f"{title} needs the package {error.name!r}", remedy=f"pip install {error.name}"
            ) from None
        self.bounded = isinstance(self.attack, FixedEpsilonAttack)
        self.reference = f"foolbox {version('foolbox')}, {attack}"

    def generate(self, model: ClassifierModule, x: Tensor, y: Tensor, seed: int) -> Tensor:
        outside = foolbox.PyTorchModel(model, bounds=self.threat.box, device=x.device)
        raw, clipped, _ = self.attack(outside, x, y, epsilons=self.threat.eps)
        found: Tensor = clipped if self.bounded else raw
        return found


def build(attack: str, threat: ThreatModel, options: Mapping[str, Any]) -> FoolboxAttack:
    """The attack of that class name; ``options`` as the class takes them."""
    return FoolboxAttack(attack, threat, options)
