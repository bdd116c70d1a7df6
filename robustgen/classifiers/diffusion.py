"""Diffusion classifiers (Li et al. 2023, arXiv 2303.16203): the class under which a denoiser errs least.

With y = x + sigma n, the ELBO of the diffusion model whose denoiser is D says

    E_n log p_low(x + low n | c) >= constant - int_low^high E_n|x - D(y; sigma, c)|^2 / sigma^2 d log sigma,

where low and high are the ends of the noise levels. It follows from the chain rule of the KL divergence
along the noising process, whose steps cost 1/2 |x - D|^2 d(1 / sigma^2) (I-MMSE, Guo et al. 2005). If D is
the true posterior mean, it is an equality except for the prior at high. If p_high is the same for all
classes, so is the constant, and the softmax over classes of the negative integral is p(c | x).
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.likelihood import Checkpointed
from robustgen.errors import UserError
from robustgen.types import Density

# FIRST_LEVEL, ELIMINATION and PRIOR_DEVIATION were chosen on the calibration split of the digits.
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
FIRST_LEVEL = 0.72
"""Position of the first noise level within [log low, log high], where a single level is most informative."""
ELIMINATION = 2.0
"""A class is eliminated once it is worse than the best by this many standard errors of their difference."""
PRIOR_DEVIATION = 6.0
"""Prior standard deviation, in nats, of the difference of two classes at one noise sample."""


class DiffusionClassifier(Classifier):
    """log p(x | c) up to a constant, from the errors of a class-conditional denoiser on a fixed noise set.

    ``over``: the denoiser. The noise set is part of the model, drawn once from ``seed``: ``levels`` noise
    levels between ``low`` and ``high`` (pixel units), each with one Gaussian sample n that is used with
    both signs, for every image and every class. So the classifier is deterministic, a result does not
    depend on the rest of its batch, and most of the noise cancels in differences between classes. The
    levels are a golden-ratio sequence in log sigma, so those of a smaller set are the first of a larger.

    In terms of the predicted noise, |n - n_hat|^2 = |x - D|^2 / sigma^2 has equal weight per log sigma here,
    but per time step in Li et al.: the distribution of levels differs.

    ``evidence``: a factor on the errors, and so on differences between classes. A denoiser trained by the
    cross-entropy of classes (training/denoising.py) exaggerates these differences; ``evidence`` rescales
    them towards nats.

    The density is ``unnormalised``: the mean over the noise set estimates a bound, and is not one itself.
    """

    density: Density = "unnormalised"
    sigmas: Tensor
    noise_set: Tensor

    def __init__(
        self,
        over: Denoiser,
        *,
        levels: int = 8,
        low: float = 0.1,
        high: float = 1.0,
        evidence: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if levels < 1 or not over.levels.low <= low < high <= over.levels.high or not evidence > 0:
            raise UserError(
                "this noise set does not fit the denoiser",
                expected=f"one level or more, low < high within {over.levels.low:g} to {over.levels.high:g}, "
                "evidence > 0",
                got=f"levels={levels}, low={low}, high={high}, evidence={evidence}",
            )
        self.denoiser = over
        self.num_classes = over.num_classes
        self.input_shape = over.input_shape
        self.low, self.high, self.span = low, high, math.log(high / low)
        self.evidence = evidence
        position = (FIRST_LEVEL + GOLDEN_RATIO * torch.arange(levels, dtype=torch.float64)) % 1
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("sigmas", (low * (self.span * position).exp()).float())
        # drawn level by level: one large draw would depend on the number of levels
        noise = [torch.randn(over.input_shape, generator=generator) for _ in range(levels)]
        self.register_buffer("noise_set", torch.stack(noise))
        self.calls_per_image = 2 * levels * (1 if over.shares_classes else over.num_classes)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return -self.terms(x).mean(0)

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        # ``evidence`` is meant for differences between classes only: undo it for their mean
        logits = self.logits(x)
        return logits + (1 / self.evidence - 1) * logits.mean(1, keepdim=True)

    def terms(self, x: Tensor) -> Tensor:
        """Contributions to the integral, (levels, batch, classes); the logits are minus their mean."""
        levels = range(len(self.sigmas))
        return torch.stack([Checkpointed.apply(partial(self._level_terms, level), x) for level in levels])

    def _level_terms(self, level: int, x: Tensor) -> Tensor:
        """Weighted errors (batch, classes) at one level, averaged over both signs of the noise."""
        signs = x.new_ones(2 * len(x))
        signs[len(x) :] = -1
        rows = torch.arange(2 * len(x), device=x.device).repeat(self.num_classes)
        labels = torch.arange(self.num_classes, device=x.device).repeat_interleave(2 * len(x))
        errors = self._errors(level, x.repeat(2, 1, 1, 1), signs, rows, labels)
        return errors.view(self.num_classes, 2, len(x)).mean(1).T

    def _errors(self, level: int, x: Tensor, signs: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        """Weighted errors (pairs,) of x[rows] given ``labels``; ``signs`` (batch,) multiply the noise.

        Their mean over levels, which are uniform in log sigma, is the integral.
        """
        sigma = self.sigmas[level]
        noisy = x + signs.view(-1, 1, 1, 1) * sigma * self.noise_set[level].to(x)
        estimate = self.denoiser.denoise_pairs(noisy, sigma, rows, labels)
        return (x[rows] - estimate).square().sum((1, 2, 3)) * (self.evidence * self.span) / sigma**2

    @torch.no_grad()
    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes (batch,) by successive elimination, and the denoiser calls (batch,) they took.

        The noise set is evaluated one sample at a time, at each level with one sign and then the other;
        after each, classes that are significantly worse than the best so far are eliminated, and an image
        with one class left is decided. Unless the best class was eliminated by mistake, the prediction is
        the argmax of ``logits``.
        """
        alive = torch.ones(len(x), self.num_classes, dtype=torch.bool, device=x.device)
        calls = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        terms = x.new_zeros(0, len(x), self.num_classes)
        for level, sign in ((level, sign) for level in range(len(self.sigmas)) for sign in (1, -1)):
            undecided = alive & (alive.sum(1) > 1)[:, None]
            (images,) = undecided.any(1).nonzero(as_tuple=True)
            if not len(images):
                break
            rows, labels = undecided[images].nonzero(as_tuple=True)
            new = x.new_zeros(1, len(x), self.num_classes)
            signs = x.new_full((len(images),), sign)
            new[0, images[rows], labels] = self._errors(level, x[images], signs, rows, labels)
            terms = torch.cat([terms, new])
            calls += undecided.any(1) if self.denoiser.shares_classes else undecided.sum(1)
            alive &= ~undecided | self._not_significantly_worse(terms, alive)
        return terms.mean(0).masked_fill(~alive, math.inf).argmin(1), calls

    def _not_significantly_worse(self, terms: Tensor, alive: Tensor) -> Tensor:
        """Which classes (batch, classes) remain candidates, given errors (noise samples, batch, classes).

        The two samples of a level are treated as independent; they are negatively correlated, so the true
        standard error is smaller.
        """
        seen, total = len(terms), 2 * len(self.sigmas)
        best = terms.mean(0).masked_fill(~alive, math.inf).argmin(1)
        differences = terms - terms.gather(2, best[None, :, None].expand(seen, -1, 1))
        mean = differences.mean(0)
        # the prior counts as one observation besides the seen - 1 degrees of freedom
        variance = (PRIOR_DEVIATION**2 + (differences - mean).square().sum(0)) / seen
        correction = 1 - seen / total  # for sampling without replacement from a finite set
        return alive & (mean <= ELIMINATION * (variance * correction / seen).sqrt())
