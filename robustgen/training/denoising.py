"""Training on noisy images y = x + sigma eps: a joint model, its control, or a stand-alone denoiser.

- CDN: cross-entropy and class-conditional denoising score matching (Vincent 2011; Thiry and Guth
  2024), E -log p(c | y) + weight * E lambda(sigma) |sigma grad_y log p_sigma(y, c) + eps|^2 / d.
- EGC: cross-entropy without the label input, and the same score matching of its energy with the label
  input, which is dropped at random (Guo et al. 2023).
- NoisySoftmax, or weight 0: cross-entropy alone.
- EDMDenoiser: E lambda(sigma) |D(y; sigma, c) - x|^2 / (sigma^2 d), with labels dropped at random.
- SharedDenoiser: the same, plus contrast * the cross-entropy of softmax_k(-t |D(y; sigma, k) - x|^2 /
  sigma^2), with t = EVIDENCE: the logits of a diffusion classifier at one level (classifiers/diffusion.py).
  The label lowers the error so little that denoising alone learns it last; Li et al. 2026 (MCLR, arXiv
  2603.22364) raise likelihood ratios for the same reason.

Both kinds of denoising are the same loss, since by Tweedie's formula D - x = sigma (sigma grad log p + eps);
lambda(sigma) = (sigma^2 + sigma_data^2) / sigma_data^2 makes it 1 at every level for a network whose
output is 0 (Karras et al. 2022, equation 8).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.cdn import CDN, NoisyClassifier
from robustgen.classifiers.denoisers import EDMDenoiser, SharedDenoiser
from robustgen.classifiers.egc import EGC
from robustgen.errors import UserError
from robustgen.training import Objective, accuracy
from robustgen.training.recipe import DenoisingSpec
from robustgen.types import ConditionalNoise

EVIDENCE = 0.1
"""t of the contrastive term. At 1, the scale in nats, the difference of two classes at one noisy image drowns
in its noise: r^2 nats come with a standard deviation of about 0.8 r. After 400 steps on CIFAR-10 this is an
accuracy of 32 % instead of 48 % (512 calibration images, one noise sample each; the script was not kept)."""


class Denoising(Objective):
    """The objective of all models that are trained on noisy images; the terms depend on the model's class."""

    spec: DenoisingSpec

    def loss(
        self, model: Classifier | Denoiser, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        if not isinstance(model, NoisyClassifier | EDMDenoiser):
            raise UserError(
                "the objective denoising trains models of noisy pictures only",
                expected="the architecture cdn, egc, noisy-softmax or denoiser",
                got=type(model).__name__,
            )
        if self.progress == 0:  # first step: the data scale is measured, not trained
            model.fit_scale(self.data.images.to(x))
        if isinstance(model, EDMDenoiser):
            return self._denoiser(model, x, y, generator)
        return self._classifier(model, x, y, generator)

    def _classifier(
        self, model: NoisyClassifier, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model.noise, ConditionalNoise)
        clean = _random_mask(self.spec.clean, x, generator)
        levels = draw_levels(len(x), model.noise, self.spec.strong, generator)
        sigma = torch.where(clean, model.noise.low, levels)  # clean images are classified at low
        eps = torch.randn(x.shape, generator=generator, device=x.device)
        noisy = x + _per_image(torch.where(clean, 0.0, sigma)) * eps
        if self.spec.weight == 0 or not isinstance(model, CDN | EGC):
            logits = model.logits(noisy, sigma)
            loss = F.cross_entropy(logits, y)
            return loss, {"accuracy": accuracy(logits, y)}
        noisy.requires_grad_()
        if isinstance(model, CDN):
            logits = model.log_joint(noisy, sigma)
            log_prob = logits.gather(1, y[:, None])
        else:
            logits = model.logits(noisy, sigma)  # without the label input
            labels = torch.where(_random_mask(self.spec.dropped, x, generator), model.num_classes, y)
            log_prob = model.log_density(noisy, sigma, model.class_map(noisy, sigma, labels))
        score = torch.autograd.grad(log_prob.sum(), noisy, create_graph=True)[0]
        residual = (_per_image(sigma) * score + eps).square().mean((1, 2, 3))
        weights = level_weight(sigma, model.sigma_data) * ~clean
        matching = (weights * residual).sum() / (~clean).sum().clamp_min(1)
        entropy = F.cross_entropy(logits, y)
        parts = {"matching": float(matching.detach()), "cross_entropy": float(entropy.detach())}
        return entropy + self.spec.weight * matching, parts | {"accuracy": accuracy(logits, y)}

    def _denoiser(
        self, model: EDMDenoiser, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        sigma = draw_levels(len(x), model.levels, self.spec.strong, generator)
        noisy = x + _per_image(sigma) * torch.randn(x.shape, generator=generator, device=x.device)
        labels = torch.where(_random_mask(self.spec.dropped, x, generator), model.num_classes, y)
        if self.spec.contrast == 0:
            errors = ((model.denoise(noisy, sigma, labels) - x) / _per_image(sigma)).square().sum((1, 2, 3))
            return self._weighted_mean(model, sigma, errors / x[0].numel()), {}
        if not isinstance(model, SharedDenoiser):
            raise UserError(
                "a contrast needs a network that denoises under every label at once",
                where="objective.contrast",
                expected="the architecture shared-denoiser, or a contrast of 0", got=type(model).__name__,
            )  # fmt: skip
        each = (model.denoise_each(noisy, sigma) - x[:, None]) / _per_image(sigma)[:, None]
        errors = each.square().sum((2, 3, 4))
        matching = self._weighted_mean(model, sigma, errors.gather(1, labels[:, None])[:, 0] / x[0].numel())
        logits = -EVIDENCE * errors[:, : model.num_classes]
        entropy = F.cross_entropy(logits, y)
        parts = {"matching": float(matching.detach()), "cross_entropy": float(entropy.detach())}
        return matching + self.spec.contrast * entropy, parts | {"accuracy": accuracy(logits, y)}

    def _weighted_mean(self, model: EDMDenoiser, sigma: Tensor, errors: Tensor) -> Tensor:
        return (level_weight(sigma, model.sigma_data) * errors).mean()


def draw_levels(n: int, levels: ConditionalNoise, strong: float, generator: torch.Generator) -> Tensor:
    """Noise levels (n,): log-uniform, the share ``strong`` of them over the highest factor of ten.

    Log-uniform over all levels alone spends half of the training where the noise is below the spacing of
    grey levels, and leaves the denoiser worse than the Wiener filter at high levels.
    """
    device = generator.device
    share = torch.rand(n, generator=generator, device=device)
    high_only = torch.rand(n, generator=generator, device=device) < strong
    lowest = torch.where(high_only, max(levels.low, levels.high / 10), levels.low)
    return lowest * (levels.high / lowest) ** share


def level_weight(sigma: Tensor, sigma_data: Tensor) -> Tensor:
    """lambda(sigma), shape (batch,), as in the module's docstring."""
    return 1 + (sigma / sigma_data) ** 2


def _random_mask(share: float, x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(x), generator=generator, device=x.device) < share


def _per_image(per_sample: Tensor) -> Tensor:
    return per_sample[:, None, None, None]
