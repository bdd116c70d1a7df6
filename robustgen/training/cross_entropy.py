"""Cross-entropy: -log p(y | x), the objective of every discriminative classifier."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.classifiers.base import Classifier
from robustgen.training import Objective, accuracy
from robustgen.training.recipe import CrossEntropySpec


class CrossEntropy(Objective):
    """Mean of -log p(y | x), against labels that are smoothed by ``spec.label_smoothing``."""

    spec: CrossEntropySpec

    def loss(
        self, model: Classifier, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        logits = model.logits(x)
        loss = functional.cross_entropy(logits, y, label_smoothing=self.spec.label_smoothing)
        return loss, {"accuracy": accuracy(logits, y)}
