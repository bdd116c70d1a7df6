"""The small types that every layer speaks: what a result is, and what may be said of a model.

Units, once for the whole package: images are float32 in [0, 1] of shape (batch, channels, height,
width); eps and sigma are in those pixel units; log-densities are in nats with respect to x in
[0, 1]^d; labels are int64, and -1 where a picture has none (foreign data).
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
"""What an evaluation measures, in run.json. Protocols ask by other words: ``transfer`` is an attack too."""

Precision: TypeAlias = Literal["float32", "bf16"]
"""Of the gradients of attacks, and of a training's network."""

# What a model's log_prob is. Only "exact" and "lower_bound" may be turned into bits per dimension;
# "unnormalised" ranks pictures and says nothing more.
Density: TypeAlias = Literal["exact", "lower_bound", "unnormalised"]

ADDED = "added"
"""What the attack of pictures from elsewhere is called, and the key of what is known of them."""
ATTACKED: tuple[Kind, ...] = ("attack", "detected", "fixed")
"""The kinds of evaluations that store an attack's pictures."""
UNLABELLED = -1
VERDICT_DRAWS = 32
"""How often a stochastic model is asked for its verdict on a picture; an attack's own check as often."""
LEAST_LEVELS = 12
"""The fewest noise levels that an integral is taken over."""


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

    ``evaluation`` says of what, and is the name of its folder; ``variant`` says which score or
    attack was read from it. ``n`` is the number of samples behind the value.
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
    """A doubt about a result, as data: it stands in the report beside the number that it touches.

    ``message``: a sentence of fact, which ends at the first ". ", then the remedy. Names from elsewhere in
    the fact go through ``unbroken``.
    """

    model: str
    evaluation: str
    flag: str
    severity: Severity
    message: str


def unbroken(name: str) -> str:
    """A name within a flag's fact, which ends no sentence: no-break spaces follow its full stops."""
    return name.replace(". ", ".\N{NO-BREAK SPACE}")
