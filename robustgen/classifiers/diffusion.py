"""Diffusion classifiers (Li et al. 2023, arXiv 2303.16203): a class by how well the denoiser knows it.

With y = x + sigma n, the ELBO of the diffusion model whose denoiser is D says

    E_n log p_low(x + low n | c) >= constant - int_low^high E_n|x - D(y; sigma, c)|^2 / sigma^2 d log sigma,

low and high being the ends of the noise levels that are used: by the chain rule of the KL divergence
along the noising, whose steps cost 1/2 |x - D|^2 d(1 / sigma^2) (I-MMSE, Guo et al. 2005), and where D
is the true posterior mean with equality but for the prior at high. The constant is common to all
classes where p_high is, so that the negative integral's softmax over classes is p(c | x).
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

# FIRST, SIGNIFICANT and GUESS were chosen on the calibration split of the digits.
GOLDEN = (math.sqrt(5) - 1) / 2
FIRST = 0.72
"""Where in [log low, log high] the first level lies: there one level tells most."""
SIGNIFICANT = 2.0
"""A class is out once it is worse than the best by so many standard errors of their difference."""
GUESS = 6.0
"""Nats: what the deviation of a noise picture's difference of two classes is taken for before any is seen."""


class DiffusionClassifier(Classifier):
    """log p(x | c) up to a constant, from the errors of a class-conditional denoiser on a fixed noise set.

    ``over``: the denoiser. The noise set is a part of the model, drawn once from ``seed``: ``levels``
    noise levels between ``low`` and ``high`` (pixel units), each with one Gaussian picture n that
    is used with both signs, for every picture and every class. So the classifier is deterministic,
    no row depends on its batch, and most of the noise falls out of differences between classes. The
    levels follow the golden ratio in log sigma: those of a smaller set are the first of a larger one.

    In terms of the noise that a denoiser predicts, |n - n_hat|^2 = |x - D|^2 / sigma^2 counts alike at every
    level of log sigma here, and at every time step in Li et al.: the levels' law differs.

    ``evidence``: what a nat of difference between classes counts for. A denoiser that was trained to tell the
    classes apart at a share of their evidence (training/denoising.py) makes them that much larger than nats.

    The density is ``unnormalised``: the integral, a mean over the noise set in place of the
    expectation, is an estimate of a bound, and no bound itself.
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
        place = (FIRST + GOLDEN * torch.arange(levels, dtype=torch.float64)) % 1
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("sigmas", (low * (self.span * place).exp()).float())
        # a draw for each level, since torch fills a larger tensor otherwise
        noise = [torch.randn(over.input_shape, generator=generator) for _ in range(levels)]
        self.register_buffer("noise_set", torch.stack(noise))
        self.calls_per_image = 2 * levels * (1 if over.shares_classes else over.num_classes)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return -self.terms(x).mean(0)

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        # ``evidence`` is of what tells classes apart; what they have in common is in nats as it is
        logits = self.logits(x)
        return logits + (1 / self.evidence - 1) * logits.mean(1, keepdim=True)

    def terms(self, x: Tensor) -> Tensor:
        """What each level adds to the integral, (levels, batch, classes): logits are minus their mean."""
        levels = range(len(self.sigmas))
        return torch.stack([Checkpointed.apply(partial(self._terms, level), x) for level in levels])

    def _terms(self, level: int, x: Tensor) -> Tensor:
        """Weighted errors (batch, classes), the mean of both signs, at one level.

        Their mean over levels, uniform in log sigma, is the integral.
        """
        signs = x.new_ones(2 * len(x))
        signs[len(x) :] = -1
        rows = torch.arange(2 * len(x), device=x.device).repeat(self.num_classes)
        labels = torch.arange(self.num_classes, device=x.device).repeat_interleave(2 * len(x))
        errors = self._errors(level, x.repeat(2, 1, 1, 1), signs, rows, labels)
        return errors.view(self.num_classes, 2, len(x)).mean(1).T

    def _errors(self, level: int, x: Tensor, signs: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        """Weighted errors (pairs,) of x[rows] under labels, the noise taken with ``signs`` (batch,)."""
        sigma = self.sigmas[level]
        noisy = x + signs.view(-1, 1, 1, 1) * sigma * self.noise_set[level].to(x)
        estimate = self.denoiser.denoise_pairs(noisy, sigma, rows, labels)
        return (x[rows] - estimate).square().sum((1, 2, 3)) * (self.evidence * self.span) / sigma**2

    @torch.no_grad()
    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The classes of pictures by staged elimination, and the denoiser calls (batch,) that each took.

        Noise picture by noise picture, each level's first with one sign and then with the other, candidates
        that are significantly worse than the best one so far are dropped; a picture with one left is
        decided. Where no class is dropped wrongly these are the arg-maxima of ``logits``: after the last
        one the finite noise set leaves nothing to chance.
        """
        alive = torch.ones(len(x), self.num_classes, dtype=torch.bool, device=x.device)
        calls = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        terms = x.new_zeros(0, len(x), self.num_classes)
        for level, sign in ((level, sign) for level in range(len(self.sigmas)) for sign in (1, -1)):
            open_ = alive & (alive.sum(1) > 1)[:, None]
            (asked,) = open_.any(1).nonzero(as_tuple=True)
            if not len(asked):
                break
            rows, labels = open_[asked].nonzero(as_tuple=True)
            new = x.new_zeros(1, len(x), self.num_classes)
            signs = x.new_full((len(asked),), sign)
            new[0, asked[rows], labels] = self._errors(level, x[asked], signs, rows, labels)
            terms = torch.cat([terms, new])
            calls += open_.any(1) if self.denoiser.shares_classes else open_.sum(1)
            alive &= ~open_ | self._still_possible(terms, alive)
        return terms.mean(0).masked_fill(~alive, math.inf).argmin(1), calls

    def _still_possible(self, terms: Tensor, alive: Tensor) -> Tensor:
        """Which candidates (batch, classes) are not significantly worse than the best, from the errors
        (noise pictures so far, batch, classes) of the finite noise set.

        The two of a level are taken for independent. They lean against each other, which makes their mean
        better than it is taken for.
        """
        seen, every = len(terms), 2 * len(self.sigmas)
        best = terms.mean(0).masked_fill(~alive, math.inf).argmin(1)
        differences = terms - terms.gather(2, best[None, :, None].expand(seen, -1, 1))
        mean = differences.mean(0)
        # the guess counts as one observation beside those of the seen - 1 degrees of freedom
        variance = (GUESS**2 + (differences - mean).square().sum(0)) / seen
        left = 1 - seen / every  # of a finite set, drawn without replacement
        return alive & (mean <= SIGNIFICANT * (variance * left / seen).sqrt())
