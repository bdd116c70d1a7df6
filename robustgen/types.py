"""Small types that every layer uses: results, flags, and properties of models.

Units, once for the whole package: images are float32 in [0, 1] of shape (batch, channels, height,
width); eps and sigma are in those pixel units; log-densities are in nats with respect to x in
[0, 1]^d; labels are int64, and -1 for pictures without one (foreign data).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Norm: TypeAlias = Literal["linf", "l2", "l1"]
Split: TypeAlias = Literal["train", "calibration", "test"]
Kind: TypeAlias = Literal[
    "clean", "calibration", "corruption", "ood", "attack", "fixed", "detected", "gradients", "efficiency",
    "explained", "probes", "climbs",
]  # fmt: skip
"""What an evaluation measures, in run.json. A protocol's kinds differ: its ``transfer`` is an attack here."""

Precision: TypeAlias = Literal["float32", "bf16"]
"""Of the gradients of attacks, and of a training's network."""

# What a model's log_prob is. Only "exact" and "lower_bound" may be turned into bits per dimension;
# "unnormalised" ranks pictures and says nothing more.
Density: TypeAlias = Literal["exact", "lower_bound", "unnormalised"]

ADDED = "added"
"""Name of the attack that stands for added pictures (added.py), and key of their description."""
ATTACKED: tuple[Kind, ...] = ("attack", "detected", "fixed")
"""The kinds of evaluations that store adversarial pictures."""
UNLABELLED = -1
VERDICT_DRAWS = 32
"""Forward passes for the verdict of a stochastic model on a picture, and for an attack's own check."""
MIN_LEVELS = 12
"""The fewest noise levels for an integral over them."""


@dataclass(frozen=True)
class NoNoise:
    """A model that was not trained on noisy pictures: it has no denoiser (Tweedie does not apply)."""


@dataclass(frozen=True)
class FixedNoise:
    """A model of pictures at one noise level, such as JEM's training noise; no denoiser elsewhere."""

    sigma: float


@dataclass(frozen=True)
class ConditionalNoise:
    """A model of noisy pictures at every level in [low, high], to which sigma is an input."""

    low: float
    high: float

    def __contains__(self, sigma: float) -> bool:
        return self.low <= sigma <= self.high


Noise: TypeAlias = NoNoise | FixedNoise | ConditionalNoise


@dataclass(frozen=True)
class Metric:
    """One number of a report, with its 95 % interval.

    ``evaluation``: of what, the name of its folder; ``variant``: by which score or attack; ``n``: the number
    of samples behind the value.
    """

    model: str
    evaluation: str
    variant: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    unit: str
    higher_is_better: bool | None


Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Flag:
    """A doubt about a result, shown in the report beside the numbers that it concerns.

    ``message``: one sentence of fact, which ends at the first ". ", then the remedy. Names that
    users choose must go through ``unbroken`` in the fact.
    """

    model: str
    evaluation: str
    flag: str
    severity: Severity
    message: str


def unbroken(name: str) -> str:
    """The name with no-break spaces after its full stops, so that none of them ends a flag's sentence."""
    return name.replace(". ", ".\N{NO-BREAK SPACE}")
