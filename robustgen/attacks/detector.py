"""Attacks that know of a detector: a wrong picture counts only where the detector accepts it.

A model with a detector withstands an attacker on a sample if it is right about the clean picture and
accepts it, and no picture in the ball is both wrong and accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.attacks.apgd import APGD, Climb, apgd
from robustgen.attacks.cascade import Cascade, Stage
from robustgen.attacks.search import Search, Start
from robustgen.attacks.victim import Answer, Victim
from robustgen.classifiers.base import Classifier, FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError
from robustgen.perturb import Perturbed
from robustgen.scores import Score
from robustgen.threat import ThreatModel

ScoreFunction = Callable[[Classifier, Tensor], Tensor]
# Nats of the margin for one spread of the score. Which is best differs by model.
WEIGHTS = {"evade-0.5": 0.5, "evade-2": 2.0}


def log_prob(model: Classifier, x: Tensor) -> Tensor:
    """log p(x), (batch,): what a joint model detects foreign pictures by."""
    return model.log_prob(x).float()  # as rows store it


def confidence(model: Classifier, x: Tensor) -> Tensor:
    """The log of the highest p(y | x), (batch,): the baseline, which every classifier has.

    Of float32 logits, in float64, and rounded: metrics/detector_estimates.py finds the same value in stored
    rows, also where the other classes' share is too small for float32 beside 1.
    """
    ordered = model.logits(x).float().double().sort(1).values
    others = (ordered[:, :-1] - ordered[:, -1:]).exp().sum(1)
    return -others.log1p().float()


@dataclass(frozen=True)
class ScoreDetector:
    """Accepts a picture where its score, (batch,) and differentiable, is at least the threshold.

    ``spread``: the scores' standard deviation on accepted and rejected pictures of the data, a unit.
    """

    score: ScoreFunction
    threshold: float
    spread: float = 1.0

    def excess(self, model: Classifier, x: Tensor) -> Tensor:
        """The score above the threshold in units of the spread, (batch,): accepted where it is 0 or more."""
        return (self.score(model, x) - self.threshold) / self.spread


@torch.no_grad()
def fit(
    model: Classifier, images: Tensor, score: ScoreFunction = log_prob, rejection: float = 0.05
) -> ScoreDetector:
    """The detector that rejects a share ``rejection``, rounded down, of the calibration pictures ``images``
    (n, ...), their labels not looked at. It is as strict as that allows.

    UnsupportedError where the model has no such score, UserError where a score is not finite.
    """
    if not 0 <= rejection < 1 or len(images) == 0:
        raise UserError(
            "a threshold cannot be fitted", where="detector.fit",
            expected="pictures, and a share from 0 to below 1", got=f"{len(images)} pictures, {rejection}",
        )  # fmt: skip
    if score is log_prob and "log_prob" not in model.supports:
        raise UnsupportedError(
            "this model has no log p(x) to detect by", where="detector.fit",
            expected="a joint or generative classifier", remedy="take the score 'confidence'",
        )  # fmt: skip
    scores = score(model, images).double()
    if not bool(torch.isfinite(scores).all()):
        raise UserError("a score of a calibration picture is NaN or infinite", where="detector.fit")
    threshold = float(scores.sort().values[math.floor(rejection * len(scores))])
    spread = float(scores.std(correction=0))
    return ScoreDetector(score, threshold, spread or 1.0)


@torch.no_grad()
def withstands(model: Classifier, detector: ScoreDetector, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """Whether x (batch, ...) is right and accepted, and x_adv right or rejected, (batch,)."""
    clean = (model.logits(x).argmax(1) == y) & (detector.excess(model, x) >= 0)
    return clean & ((model.logits(x_adv).argmax(1) == y) | (detector.excess(model, x_adv) < 0))


SCORED_BY: dict[str, ScoreFunction] = {"log_prob": log_prob, "confidence": confidence}


class Fitted:
    """A model's detector by a score of SCORED_BY, fitted on ``pictures()`` when it is first asked for;
    None for a model without that score, or with answers that are random: one draw would decide who is
    accepted."""

    def __init__(self, score: str, rejection: float, pictures: Callable[[], Dataset]) -> None:
        self.score = SCORED_BY[score]
        self.rejection = rejection
        self.pictures = pictures
        self._of: tuple[Classifier, ScoreDetector | None] | None = None

    def __call__(self, model: Classifier) -> ScoreDetector | None:
        if self._of is None or self._of[0] is not model:
            self._of = (model, self._fit(model))
        return self._of[1]

    def _fit(self, model: Classifier) -> ScoreDetector | None:
        if model.stochastic:
            return None
        device = next(model.parameters(), torch.zeros(())).device
        if isinstance(model, FixedBatch):  # the same bits, and no calls that a sample of a chunk is charged
            model = FixedBatch(model.model, model.batch, sizes=model.sizes)
        try:
            return fit(model, self.pictures().images.to(device), self.score, self.rejection)
        except UnsupportedError:
            return None


class Judged(Score):
    """``judged``, what a detector goes by, and ``threshold``: accepted is what is judged no lower.

    Nothing for a model without the detector's score.
    """

    def __init__(self, fitted: Fitted) -> None:
        self.fitted = fitted

    @torch.no_grad()
    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        detector = self.fitted(model)
        if detector is None:
            return {}
        judged = detector.score(model, images).double().cpu()
        return {"judged": judged, "threshold": torch.full_like(judged, detector.threshold)}


class Guarded(Victim):
    """A model with its detector. To losses, the last column of the logits is the detector's excess."""

    def __init__(self, model: Classifier, detector: ScoreDetector) -> None:
        super().__init__(model)
        self.detector = detector

    def see(self, x: Tensor) -> Tensor:
        excess = self.detector.excess(self.fast, x)
        return torch.cat([self.fast.logits(x), excess[:, None]], 1)

    @torch.no_grad()
    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        return super().confirm(x, y) & (self.detector.excess(self.model, x) >= 0)


class Evading(Search[Climb]):
    """APGD on what is still missing: min(loss, 0) + ``weight`` * min(excess, 0) of the detector.

    Above 0 both are what the attacker wants. A rejected picture does him no good: it is answered as if
    the model were right about it.
    """

    def __init__(self, search: APGD[Any], weight: float) -> None:
        self.search = search
        self.jobs, self.ranks = search.jobs, search.ranks
        self.weight = weight

    def begin(self, start: Start, draws: Draws) -> Climb:
        return self.search.begin(start, draws)

    def ask(self, victim: Victim, state: Climb) -> Answer:
        def loss(both: Tensor) -> Tensor:
            wrong = self.search.loss(both[:, :-1], state.y, state.target)
            return wrong.clamp_max(0) + self.weight * both[:, -1].clamp_max(0)

        answer = victim.gradient(state.point, loss)
        logits, excess = answer.logits[:, :-1], answer.logits[:, -1:]
        right = functional.one_hot(state.y, logits.shape[1]).to(logits)
        return answer._replace(logits=torch.where(excess >= 0, logits, right))

    def step(self, state: Climb, answer: Answer) -> None:
        self.search.step(state, answer)

    def allowed(self, state: Climb) -> Tensor:
        return self.search.allowed(state)


class DetectorAware(Cascade):
    """APGD towards pictures that are wrong and accepted, at every class, with several weights.

    ``detector(model)`` is the model's detector; for a model without one nothing is attacked.
    ``withstands`` says what is left: a sample whose clean picture is rejected does not stand, whatever
    was found for it.
    """

    reference = "Tramer et al. 2020, arXiv:2002.08347"
    name = "detector-aware"

    def __init__(
        self, threat: ThreatModel, detector: Callable[[Classifier], ScoreDetector | None], *,
        n_iter: int = 100,
    ) -> None:  # fmt: skip
        super().__init__(threat, tuple(WEIGHTS))
        self.detector = detector
        self.n_iter = n_iter

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        if self.detector(model) is None:  # nothing to evade: the clean pictures, and no score says otherwise
            return Perturbed(x)
        return super().__call__(model, x, y, draws)

    def stages(self, model: Classifier) -> list[Stage]:
        detector = self.detector(model)
        assert detector is not None
        climb = apgd(self.threat, "margin-targeted", jobs=model.num_classes - 1, n_iter=self.n_iter)
        view = partial(Guarded, detector=detector)
        return [Stage(name, Evading(climb, weight), view) for name, weight in WEIGHTS.items()]
