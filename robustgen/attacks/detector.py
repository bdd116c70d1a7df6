"""Attacks on a model and its detector together: a misclassified image counts only if the detector accepts it.

On a sample, the two withstand an attack if the clean image is classified right and accepted, and no image
in the ball is both misclassified and accepted.
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

from robustgen.attacks.apgd import APGD, APGDState, apgd
from robustgen.attacks.cascade import Cascade, Stage
from robustgen.attacks.search import Search, Start
from robustgen.attacks.victim import Answer, Victim
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UnsupportedError, UserError
from robustgen.perturb import Perturbed
from robustgen.scores import Score
from robustgen.threat import ThreatModel

ScoreFunction = Callable[[Classifier, Tensor], Tensor]
WEIGHTS = {"evade-0.5": 0.5, "evade-2": 2.0}
"""Stages, and the weight of the detector's excess beside the margin in nats; which is best differs by
model."""


def log_prob(model: Classifier, x: Tensor) -> Tensor:
    """log p(x), (batch,): the score by which a joint model detects foreign images."""
    return model.log_prob(x).float()  # as rows store it


def confidence(model: Classifier, x: Tensor) -> Tensor:
    """The log of the highest p(y | x), (batch,): the baseline, which every classifier has.

    From float32 logits, in float64, then rounded to float32, so that metrics/detector_estimates.py
    recomputes the same value from stored rows, even where the other classes' share is too small for
    float32 beside 1.
    """
    ordered = model.logits(x).float().double().sort(1).values
    others = (ordered[:, :-1] - ordered[:, -1:]).exp().sum(1)
    return -others.log1p().float()


@dataclass(frozen=True)
class ScoreDetector:
    """Accepts an image if its score, (batch,) and differentiable, is at least the threshold.

    ``spread``: the standard deviation of the score over calibration images, the unit of ``excess``.
    """

    score: ScoreFunction
    threshold: float
    spread: float = 1.0

    def excess(self, model: Classifier, x: Tensor) -> Tensor:
        """(score - threshold) / spread, (batch,): accepted where it is 0 or more."""
        return (self.score(model, x) - self.threshold) / self.spread


@torch.no_grad()
def fit(
    model: Classifier, images: Tensor, score: ScoreFunction = log_prob, rejection: float = 0.05
) -> ScoreDetector:
    """The strictest detector that rejects at most a share ``rejection`` of the calibration images (n, ...).

    Labels are not used. Raises UnsupportedError where the model has no such score, UserError where a score
    is not finite.
    """
    if not 0 <= rejection < 1 or len(images) == 0:
        raise UserError(
            "the detector's threshold cannot be fitted", where="detector.fit",
            expected="at least one image, and 0 <= rejection < 1",
            got=f"{len(images)} images, rejection={rejection}",
        )  # fmt: skip
    if score is log_prob and "log_prob" not in model.supports:
        raise UnsupportedError(
            "this model has no log p(x) to detect by", where="detector.fit",
            expected="a joint or generative classifier", remedy="use the score 'confidence'",
        )  # fmt: skip
    scores = score(model, images).double()
    if not bool(torch.isfinite(scores).all()):
        raise UserError("the score of a calibration image is NaN or infinite", where="detector.fit")
    threshold = float(scores.sort().values[math.floor(rejection * len(scores))])
    spread = float(scores.std(correction=0))
    return ScoreDetector(score, threshold, spread or 1.0)


@torch.no_grad()
def withstands(model: Classifier, detector: ScoreDetector, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """Whether x (batch, ...) is classified right and accepted, and x_adv classified right or rejected,
    (batch,)."""
    clean = (model.logits(x).argmax(1) == y) & (detector.excess(model, x) >= 0)
    return clean & ((model.logits(x_adv).argmax(1) == y) | (detector.excess(model, x_adv) < 0))


DETECTOR_SCORES: dict[str, ScoreFunction] = {"log_prob": log_prob, "confidence": confidence}


class LazyDetector:
    """The detector of a model, fitted on the images of ``calibration()`` when it is first needed.

    ``score``: a key of DETECTOR_SCORES. Calling it with a model gives None if the model does not have the
    score, or is stochastic: a single draw would then decide whether an image is accepted.
    """

    def __init__(self, score: str, rejection: float, calibration: Callable[[], Dataset]) -> None:
        self.score = DETECTOR_SCORES[score]
        self.rejection = rejection
        self.calibration = calibration
        self._fitted: tuple[Classifier, ScoreDetector | None] | None = None

    def __call__(self, model: Classifier) -> ScoreDetector | None:
        if self._fitted is None or self._fitted[0] is not model:
            self._fitted = (model, self._fit(model))
        return self._fitted[1]

    def _fit(self, model: Classifier) -> ScoreDetector | None:
        if model.stochastic:
            return None
        device = next(model.parameters(), torch.zeros(())).device
        if isinstance(model, FixedBatch):  # a fresh wrapper: no sample is charged for these calls
            model = FixedBatch(model.model, model.batch, sizes=model.sizes)
        try:
            return fit(model, self.calibration().images.to(device), self.score, self.rejection)
        except UnsupportedError:
            return None


class DetectorScore(Score):
    """Stores a detector's score of each image, ``judged``, and its ``threshold``; nothing without a
    detector."""

    def __init__(self, detector: LazyDetector) -> None:
        self.detector = detector

    @torch.no_grad()
    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        detector = self.detector(model)
        if detector is None:
            return {}
        judged = detector.score(model, images).double().cpu()
        return {"judged": judged, "threshold": torch.full_like(judged, detector.threshold)}


class VictimWithDetector(Victim):
    """A model with its detector, whose excess is appended to the logits as their last column."""

    def __init__(self, model: Classifier, detector: ScoreDetector) -> None:
        super().__init__(model)
        self.detector = detector

    def output(self, x: Tensor) -> Tensor:
        excess = self.detector.excess(self.fast, x)
        return torch.cat([self.fast.logits(x), excess[:, None]], 1)

    @torch.no_grad()
    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        return super().confirm(x, y) & (self.detector.excess(self.model, x) >= 0)


class DetectorEvasion(Search[APGDState]):
    """APGD on min(loss, 0) + ``weight`` * min(excess, 0): above 0 both are what the attacker wants.

    Where the detector rejects the image, the answer's logits are those of a right prediction, so it is no
    hit.
    """

    def __init__(self, search: APGD[Any], weight: float) -> None:
        self.search = search
        self.jobs, self.needs_clean_logits = search.jobs, search.needs_clean_logits
        self.weight = weight

    def begin(self, start: Start, draws: Draws) -> APGDState:
        return self.search.begin(start, draws)

    def query(self, victim: Victim, state: APGDState) -> Answer:
        def loss(output: Tensor) -> Tensor:
            misclassified = self.search.loss(output[:, :-1], state.y, state.target)
            return misclassified.clamp_max(0) + self.weight * output[:, -1].clamp_max(0)

        answer = victim.gradient(state.point, loss)
        logits, excess = answer.logits[:, :-1], answer.logits[:, -1:]
        right = functional.one_hot(state.y, logits.shape[1]).to(logits)
        return answer._replace(logits=torch.where(excess >= 0, logits, right))

    def update(self, state: APGDState, answer: Answer) -> None:
        self.search.update(state, answer)

    def within_budget(self, state: APGDState) -> Tensor:
        return self.search.within_budget(state)


class DetectorAware(Cascade):
    """APGD towards images that are misclassified and accepted, targeted at every class, with several weights.

    ``detector(model)`` gives the model's detector; a model without one is not attacked. What the two
    withstand is for ``withstands`` to say: a sample whose clean image is rejected does not count, whatever
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
        if self.detector(model) is None:
            return Perturbed(x)
        return super().__call__(model, x, y, draws)

    def stages(self, model: Classifier) -> list[Stage]:
        detector = self.detector(model)
        assert detector is not None
        climb = apgd(self.threat, "margin-targeted", jobs=model.num_classes - 1, n_iter=self.n_iter)
        victim = partial(VictimWithDetector, detector=detector)
        return [Stage(name, DetectorEvasion(climb, weight), victim) for name, weight in WEIGHTS.items()]
