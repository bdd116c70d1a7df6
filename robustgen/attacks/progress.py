"""The bookkeeping of an attack of one or more stages: what was found, and which samples still stand."""

from __future__ import annotations

import torch
from torch import Tensor

from robustgen.attacks.losses import margin
from robustgen.attacks.search import SearchResult
from robustgen.attacks.victim import MAX_RIGHT_SHARE, Prediction, predict, right_share
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import serving
from robustgen.errors import UnsupportedError


class Progress:
    """An attack's results for clean images x (batch, ...) with labels y, stage by stage.

    ``images``: the adversarial images so far, the clean image where there is none; ``robust`` (batch,):
    which samples are still to be attacked; ``broken_by``: the stage that broke each sample, None where none
    did. At first the samples that the model gets right are robust; of a stochastic model all are, since one
    draw of it decides nothing. UnsupportedError for a model of one class, of which every image would be
    robust.
    """

    def __init__(self, model: Classifier, x: Tensor, y: Tensor) -> None:
        if model.num_classes < 2:
            raise UnsupportedError(
                "a model with one class cannot be attacked",
                expected="a model with 2 classes or more", got=model.num_classes,
            )  # fmt: skip
        self.model = model
        self.y = y
        self.result = SearchResult.initial(x)
        self.right = torch.ones_like(self.result.margin)
        """The share of draws that are right at ``images``, where ``judge`` has seen them; 1 elsewhere."""
        self.broken_by: list[str | None] = [None] * len(x)
        self.clean = predict(model, x)
        self._take(torch.arange(len(x), device=x.device), x, self.clean)
        self.robust = ~self.result.broken | model.stochastic

    @property
    def images(self) -> Tensor:
        return self.result.images

    def remaining(self) -> Tensor:
        """The indices of the samples that are still to be attacked."""
        return self.robust.nonzero().squeeze(1)

    def judge(self, rows: Tensor, images: Tensor, stage: str) -> None:
        """Ask the model about one new image for each of ``rows`` and record those that break their sample."""
        with serving(self.model, rows):
            prediction = predict(self.model, images)
        self._fell(self._take(rows, images, prediction), stage)

    def add_hits(self, rows: Tensor, images: Tensor, stage: str) -> None:
        """Record images that the model is known to misclassify, one for each of ``rows``."""
        self.result.add_hits(rows, images)
        self.right[rows] = 0
        self._fell(rows, stage)

    def _take(self, rows: Tensor, images: Tensor, prediction: Prediction) -> Tensor:
        """Keep the images that are better than those before; returns the samples that they break. Of a
        stochastic model these have a margin above 0 and above that of every earlier image."""
        y = self.y[rows]
        if not self.model.stochastic:
            wrong = prediction.logits.argmax(1) != y
            self.result.add_hits(rows[wrong], images[wrong])
            self.right[rows[wrong]] = 0
            return rows[wrong]
        margins, highest = margin(prediction.logits, y), self.result.margin[rows]
        higher = margins > highest
        self.right[rows] = right_share(prediction.classes, y).where(higher, self.right[rows])
        self.result.keep_highest(rows, images, margins)
        return rows[margins > highest.clamp_min(0)]

    def _fell(self, rows: Tensor, stage: str) -> None:
        # A stochastic model's sample stays while more than a few draws are right: later stages may do better.
        self.robust[rows] = self.right[rows] > MAX_RIGHT_SHARE
        for row in rows.tolist():
            self.broken_by[row] = stage
