"""Adversarial training: the loss at perturbed images inside the ball of a threat model.

PGD-AT (Madry et al. 2018, equation 2.1): min_theta E max_{|d| <= eps} -log p(y | x + d).
N-FGSM (de Jorge et al. 2022, algorithm 1): one step d = u + eps sign(grad), not projected.
TRADES (Zhang et al. 2019, equation 5): min_theta E [-log p(y | x) + beta max_d KL(p(. | x) || p(. | x + d))].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.classifiers.base import Classifier
from robustgen.threat import ThreatModel
from robustgen.training import Objective, accuracy, frozen_weights
from robustgen.training.recipe import AdversarialSpec, FastAdversarialSpec


def projected_ascent(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    threat: ThreatModel,
    steps: int,
    step_size: float,
    generator: torch.Generator,
) -> Tensor:
    """Projected gradient ascent from a random start; returns images in the ball and the box.

    ``loss`` maps images to a scalar. The step direction is the sign of the gradient in Linf, and the
    gradient normalised in L2 for the norms l2 and l1.
    """
    start = torch.rand(x.shape, generator=generator, device=x.device) * 2 - 1
    x_adv = threat.project(x, x + threat.eps * start)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        grad = torch.autograd.grad(loss(x_adv), x_adv)[0]
        if threat.norm == "linf":
            direction = grad.sign()
        else:
            direction = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        x_adv = threat.project(x, x_adv.detach() + step_size * direction)
    return x_adv


class Adversarial(Objective):
    """PGD-AT, or TRADES if ``spec.beta`` is set. The attack runs in evaluation mode."""

    spec: AdversarialSpec

    def loss(
        self, model: Classifier, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        share = min(1.0, self.progress / self.spec.warm_up) if self.spec.warm_up else 1.0
        threat = ThreatModel(self.spec.norm, self.spec.eps * max(share, 0.01))
        x_adv = self.perturb(model, x, y, threat, generator)
        adversarial = model.logits(x_adv)
        smoothing = self.spec.label_smoothing
        if self.spec.beta is None:
            loss = functional.cross_entropy(adversarial, y, label_smoothing=smoothing)
            return loss, {"robust_accuracy": accuracy(adversarial, y)}
        clean = model.logits(x)
        natural = functional.cross_entropy(clean, y, label_smoothing=smoothing)
        divergence = _divergence(clean, adversarial)
        parts = {
            "natural": float(natural.detach()),
            "divergence": float(divergence.detach()),
            "accuracy": accuracy(clean, y),
            "robust_accuracy": accuracy(adversarial, y),
        }
        return natural + self.spec.beta * divergence, parts

    def perturb(
        self, model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, generator: torch.Generator
    ) -> Tensor:
        """Approximate inner maximum: adversarial images in the ball of ``threat`` around x."""
        with frozen_weights(model):
            if self.spec.beta is None:

                def gain(z: Tensor) -> Tensor:
                    return functional.cross_entropy(model.logits(z), y, reduction="sum")

            else:
                clean = model.logits(x).detach()

                def gain(z: Tensor) -> Tensor:
                    return _divergence(clean, model.logits(z)) * len(z)

            step_size = self.spec.step_size * threat.eps / self.spec.eps
            return projected_ascent(gain, x, threat, self.spec.steps, step_size, generator)


class FastAdversarial(Objective):
    """N-FGSM: adversarial training for about the cost of one extra gradient.

    Noise wider than the ball, and no projection, avoid the catastrophic overfitting of FGSM (de Jorge et
    al. 2022, arXiv:2202.01181). The step is taken in evaluation mode. Unlike in their code, the image is
    clipped to the box only after the step.
    """

    spec: FastAdversarialSpec

    def loss(
        self, model: Classifier, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        share = min(1.0, self.progress / self.spec.warm_up) if self.spec.warm_up else 1.0
        eps = self.spec.eps * share
        start = torch.rand(x.shape, generator=generator, device=x.device) * 2 - 1
        start = (x + self.spec.noise * eps * start).requires_grad_()
        with frozen_weights(model):
            climbed = functional.cross_entropy(model.logits(start), y, reduction="sum")
            grad = torch.autograd.grad(climbed, start)[0]
        x_adv = (start.detach() + eps * grad.sign()).clamp(0, 1)
        adversarial = model.logits(x_adv)
        return functional.cross_entropy(adversarial, y), {"robust_accuracy": accuracy(adversarial, y)}


def _divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Mean over the batch of KL(softmax(clean) || softmax(adversarial)), in nats."""
    log_p, log_q = clean.log_softmax(1), adversarial.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()
