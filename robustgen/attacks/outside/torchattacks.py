"""Attacks of torchattacks (Kim 2020, arXiv:2010.01950), such as torchattacks:CW."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torchattacks
from torch import Tensor

from robustgen.attacks.outside.base import ClassifierModule, OutsideAttack, options_of
from robustgen.threat import ThreatModel

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
BUDGETS = ("eps", "max_epsilon")  # the budget has either of these names
RESERVED = ("model", *BUDGETS, "norm", "seed", "n_classes", "verbose")
"""Parameters that are not options: the threat, the run or the model sets them."""


class TorchAttack(OutsideAttack):
    """An attack of torchattacks with its own defaults, which are chosen for eps = 8/255: at another eps set
    its step size, ``alpha``, by an option."""

    def __init__(self, attack: str, threat: ThreatModel, options: Mapping[str, Any]) -> None:
        title = f"torchattacks:{attack}"
        self.kind = getattr(torchattacks, attack)
        self.bounded = not {*BUDGETS}.isdisjoint(inspect.signature(self.kind).parameters)
        super().__init__(title, threat, options_of(self.kind, RESERVED, title, options))
        self.reference = f"torchattacks {version('torchattacks')}, {attack}"

    def generate(self, model: ClassifierModule, x: Tensor, y: Tensor, seed: int) -> Tensor:
        ours: dict[str, Any] = dict.fromkeys(BUDGETS, self.threat.eps)
        ours |= {"norm": NORMS[self.threat.norm], "seed": seed, "n_classes": model.num_classes}
        taken = inspect.signature(self.kind).parameters
        attack = self.kind(model, **{key: ours[key] for key in ours if key in taken}, **self.options)
        images: Tensor = attack(x, y)
        return images


def build(attack: str, threat: ThreatModel, options: Mapping[str, Any]) -> TorchAttack:
    """The attack of that class name; ``options`` as the class takes them."""
    return TorchAttack(attack, threat, options)
