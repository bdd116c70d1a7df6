"""Attacks from a user's Python file, by ``FILE.py:NAME`` in a protocol that is named by its own path.

The attack is a function ``NAME(model, x, y, threat, **options)``: ``model`` maps pictures to logits, x
(batch, channels, height, width) in [0, 1] are right (of a stochastic model: all), y their labels, ``threat``
has norm, eps, ``project`` and ``distance``. It returns pictures of x's shape, and is judged as every attack
is: what lies beyond the budget is no success and is flagged, and the model is asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from robustgen.attacks.outside.base import YAML, ClassifierModule, OutsideAttack, options_of
from robustgen.classifiers.user import digests, failure, import_file
from robustgen.errors import UserError
from robustgen.strict import fingerprint
from robustgen.threat import ThreatModel

OURS = ("model", "x", "y", "threat")


class UserAttack(OutsideAttack):
    """A function of a user's file; ``code``, a digest of the file and its neighbours, is its identity."""

    def __init__(self, reference: str, threat: ThreatModel, options: Mapping[str, Any]) -> None:
        file, _, self.function = reference.rpartition(":")
        self.path = Path(file)
        title = f"{self.path.stem}-{self.function}"
        function = import_file(self.path, self.function, kind="attack")
        if not callable(function):
            raise UserError(
                "this is no attack", where=reference, got=type(function).__name__,
                expected=f"a function of ({', '.join(OURS)}, ...) that returns pictures",
            )  # fmt: skip
        super().__init__(title, threat, options_of(function, OURS, title, options, YAML))
        self.code = fingerprint(digests(self.path))

    def detail(self) -> dict[str, Any]:
        return super().detail() | {"code": self.code}

    def generate(self, model: ClassifierModule, x: Tensor, y: Tensor, seed: int) -> Tensor:
        """What the function makes of the pictures."""
        try:
            found = import_file(self.path, self.function, kind="attack")(
                model, x, y, self.threat, **self.options
            )
        except (Exception, SystemExit) as error:  # the user's code: anything may come
            raise failure("this attack failed", error, self.path.resolve()) from None
        if not isinstance(found, Tensor) or found.shape != x.shape:
            raise UserError(
                "an attack must return as many pictures as it was given, of the same shape",
                where=f"{self.path}:{self.function}", expected=tuple(x.shape),
                got=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
            )  # fmt: skip
        return found
