"""Training on noisy pictures y = x + sigma eps: a joint model, its control, or a stand-alone denoiser.

- CDN: cross-entropy and class-conditional denoising score matching (Vincent 2011; Thiry and Guth
  2024), E -log p(c | y) + weight * E lambda(sigma) |sigma grad_y log p_sigma(y, c) + eps|^2 / d.
- EGC: cross-entropy without the label, and the same score matching of its energy with the label, left
  out at random (Guo et al. 2023).
- NoisySoftmax, or weight 0: the cross-entropy alone.
- EDMDenoiser: E lambda(sigma) |D(y; sigma, c) - x|^2 / (sigma^2 d), with labels left out at random.
- SharedDenoiser: the same, and contrast * the cross-entropy of softmax_k(-t |D(y; sigma, k) - x|^2 /
  sigma^2), what a diffusion classifier reads at a level (classifiers/diffusion.py), t being EVIDENCE. What
  the label takes off the error is so little of it that denoising alone learns it last; Li et al. 2026 (MCLR,
  arXiv 2603.22364) raise ratios of likelihoods to the same end.

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

# At 1, its scale in nats, what one noisy picture says of the classes is lost in its own noise: a difference
# of r^2 nats between two classes comes with a deviation of about 0.8 r. In the first 400 steps on CIFAR-10
# that is 32 % right in place of 48 (512 calibration pictures, a noise each; a script that was not kept).
EVIDENCE = 0.1


class Denoising(Objective):
    """The objective of the models that are trained on noisy pictures; which part applies, the model says."""

    spec: DenoisingSpec

    def loss(
        self, model: Classifier | Denoiser, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        if not isinstance(model, NoisyClassifier | EDMDenoiser):
            raise UserError(
                "this objective trains models of noisy pictures only",
                expected="the architecture cdn, egc, noisy-softmax or denoiser",
                got=type(model).__name__,
            )
        if self.progress == 0:  # the first step: the scale of the data is not trained but measured
            model.fit_scale(self.data.images.to(x))
        if isinstance(model, EDMDenoiser):
            return self._denoiser(model, x, y, generator)
        return self._classifier(model, x, y, generator)

    def _classifier(
        self, model: NoisyClassifier, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model.noise, ConditionalNoise)
        clean = _chance(self.spec.clean, x, generator)
        levels = draw_levels(len(x), model.noise, self.spec.strong, generator)
        sigma = torch.where(clean, model.noise.low, levels)  # the level at which a clean picture is read
        eps = torch.randn(x.shape, generator=generator, device=x.device)
        noisy = x + _wide(torch.where(clean, 0.0, sigma)) * eps
        if self.spec.weight == 0 or not isinstance(model, CDN | EGC):
            logits = model.logits(noisy, sigma)
            loss = F.cross_entropy(logits, y)
            return loss, {"accuracy": accuracy(logits, y)}
        noisy.requires_grad_()
        if isinstance(model, CDN):
            logits = model.log_joint(noisy, sigma)
            log_prob = logits.gather(1, y[:, None])
        else:
            logits = model.logits(noisy, sigma)  # the class is not to be read off the label
            labels = torch.where(_chance(self.spec.dropped, x, generator), model.num_classes, y)
            log_prob = model.log_density(noisy, sigma, model.class_map(noisy, sigma, labels))
        score = torch.autograd.grad(log_prob.sum(), noisy, create_graph=True)[0]
        residual = (_wide(sigma) * score + eps).square().mean((1, 2, 3))
        weights = level_weight(sigma, model.sigma_data) * ~clean
        matching = (weights * residual).sum() / (~clean).sum().clamp_min(1)
        entropy = F.cross_entropy(logits, y)
        parts = {"matching": float(matching.detach()), "cross_entropy": float(entropy.detach())}
        return entropy + self.spec.weight * matching, parts | {"accuracy": accuracy(logits, y)}

    def _denoiser(
        self, model: EDMDenoiser, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        sigma = draw_levels(len(x), model.levels, self.spec.strong, generator)
        noisy = x + _wide(sigma) * torch.randn(x.shape, generator=generator, device=x.device)
        labels = torch.where(_chance(self.spec.dropped, x, generator), model.num_classes, y)
        if self.spec.contrast == 0:
            errors = ((model.denoise(noisy, sigma, labels) - x) / _wide(sigma)).square().sum((1, 2, 3))
            return self._matching(model, sigma, errors / x[0].numel()), {}
        if not isinstance(model, SharedDenoiser):
            raise UserError(
                "this network denoises under one label at a time", where="objective.contrast",
                expected="the architecture shared-denoiser, or a contrast of 0", got=type(model).__name__,
            )  # fmt: skip
        each = (model.denoise_each(noisy, sigma) - x[:, None]) / _wide(sigma)[:, None]
        errors = each.square().sum((2, 3, 4))
        matching = self._matching(model, sigma, errors.gather(1, labels[:, None])[:, 0] / x[0].numel())
        logits = -EVIDENCE * errors[:, : model.num_classes]
        entropy = F.cross_entropy(logits, y)
        parts = {"matching": float(matching.detach()), "cross_entropy": float(entropy.detach())}
        return matching + self.spec.contrast * entropy, parts | {"accuracy": accuracy(logits, y)}

    def _matching(self, model: EDMDenoiser, sigma: Tensor, errors: Tensor) -> Tensor:
        return (level_weight(sigma, model.sigma_data) * errors).mean()


def draw_levels(n: int, levels: ConditionalNoise, strong: float, generator: torch.Generator) -> Tensor:
    """Noise levels (n,): log-uniform over all, or, for the share ``strong``, over the last factor of ten.

    Log-uniform alone spends half of the training where the noise is below the grey levels, and
    leaves the denoiser behind the Wiener filter at the levels where pictures are in doubt.
    """
    device = generator.device
    share = torch.rand(n, generator=generator, device=device)
    coarse = torch.rand(n, generator=generator, device=device) < strong
    lowest = torch.where(coarse, max(levels.low, levels.high / 10), levels.low)
    return lowest * (levels.high / lowest) ** share


def level_weight(sigma: Tensor, sigma_data: Tensor) -> Tensor:
    """lambda(sigma), shape (batch,), see above."""
    return 1 + (sigma / sigma_data) ** 2


def _chance(share: float, x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(len(x), generator=generator, device=x.device) < share


def _wide(per_sample: Tensor) -> Tensor:
    return per_sample[:, None, None, None]
