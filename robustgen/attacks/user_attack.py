"""Attacks from a user's Python file, named ``FILE.py:NAME`` in a protocol that is itself given by its path.

The attack is a function ``NAME(model, x, y, threat, **options)``. ``model`` maps images to logits; x
(batch, channels, height, width) in [0, 1] are the images that it classifies right (of a stochastic model:
all), y their labels; ``threat`` has norm, eps, ``project`` and ``distance``. It returns images of the shape
of x, which are judged as those of every attack: beyond eps they are no success and are flagged, and the
model is asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from robustgen.attacks.outside.base import YAML_TYPES, ClassifierModule, OutsideAttack, options_of
from robustgen.classifiers.user import code_digests, import_file, user_code_error
from robustgen.errors import UserError
from robustgen.strict import fingerprint
from robustgen.threat import ThreatModel

ARGUMENTS = ("model", "x", "y", "threat")


class UserAttack(OutsideAttack):
    """A function of a user's file. ``code``, a digest of the file and its neighbours, is part of a run's
    identity."""

    def __init__(self, reference: str, threat: ThreatModel, options: Mapping[str, Any]) -> None:
        file, _, self.function = reference.rpartition(":")
        self.path = Path(file)
        title = f"{self.path.stem}-{self.function}"
        function = import_file(self.path, self.function, kind="attack")
        if not callable(function):
            raise UserError(
                "this is not an attack", where=reference, got=type(function).__name__,
                expected=f"a function of ({', '.join(ARGUMENTS)}, ...) that returns images",
            )  # fmt: skip
        super().__init__(title, threat, options_of(function, ARGUMENTS, title, options, YAML_TYPES))
        self.code = fingerprint(code_digests(self.path))

    def detail(self) -> dict[str, Any]:
        return super().detail() | {"code": self.code}

    def generate(self, model: ClassifierModule, x: Tensor, y: Tensor, seed: int) -> Tensor:
        """What the function returns for these images."""
        try:
            found = import_file(self.path, self.function, kind="attack")(
                model, x, y, self.threat, **self.options
            )
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise user_code_error("this attack failed", error, self.path.resolve()) from None
        if not isinstance(found, Tensor) or found.shape != x.shape:
            raise UserError(
                "an attack must return images of the same shape as x",
                where=f"{self.path}:{self.function}", expected=tuple(x.shape),
                got=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
            )  # fmt: skip
        return found
