"""Score-based generative classifiers (SBGC; Zimmermann et al. 2021, arXiv 2110.00473)."""

from __future__ import annotations

import torch
from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.denoisers import EDMDenoiser
from robustgen.classifiers.likelihood import log_density, log_gaussian
from robustgen.classifiers.noise_levels import check_noise_level, per_sample
from robustgen.errors import UserError
from robustgen.types import ConditionalNoise, Density


class ScoreClassifier(Classifier):
    """log p_sigma(x, c) by the probability-flow ODE of a class-conditional denoiser, with equal class priors.

    ``over``: the denoiser. The flow runs from level sigma to the denoiser's highest, in ``steps`` steps of
    Heun's method in log sigma. The probes of the trace, ``probes`` for each slope, are part of the model,
    drawn once from ``seed`` and shared by all images and classes, so the classifier is deterministic.

    ``sigma`` (pixel units) is the test level: p_sigma is the density of images with noise of that level.
    Clean images have discrete grey levels and no density at all.

    The prior at the highest level is N(m, high^2 + sigma_data^2) for every class, with the mean image m and
    the deviation sigma_data of the denoiser; differences between classes at that level are neglected.

    log p is normalised, up to the errors of solver and probes, but as a density of noisy images. A report
    evaluates it at images without that noise, where it is larger than at any likely sample of p_sigma, so
    bits per dimension would be meaningless: the density is declared ``unnormalised``.
    ``benchmarks/diffusion.py`` measures bits per dimension at noisy images.
    """

    density: Density = "unnormalised"
    probe_set: Tensor

    def __init__(
        self, over: EDMDenoiser, *, steps: int = 6, probes: int = 1, sigma: float = 0.2, seed: int = 0
    ) -> None:
        super().__init__()
        if steps < 1 or probes < 1:
            raise UserError(
                "the flow needs steps and probes",
                expected="1 or more of each", got=f"steps={steps}, probes={probes}",
            )  # fmt: skip
        check_noise_level(sigma, over.levels)
        self.denoiser = over
        self.num_classes = over.num_classes
        self.input_shape = over.input_shape
        self.noise = ConditionalNoise(over.levels.low, over.levels.high)
        self.test_sigma = sigma
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (steps, 2, probes, *over.input_shape), generator=generator)
        self.register_buffer("probe_set", 2.0 * signs - 1)
        # two calls per step and class, each with a backward pass per probe
        self.calls_per_image = 2 * steps * over.num_classes

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        assert isinstance(self.noise, ConditionalNoise)
        sigma = self.test_sigma if sigma is None else sigma
        assert sigma is not None
        check_noise_level(sigma, self.noise)
        classes = torch.arange(self.num_classes, device=x.device)
        labels, levels = classes.repeat_interleave(len(x)), per_sample(sigma, x).repeat(len(classes))
        densities = log_density(
            lambda z, s: self.denoiser.denoise(z, s, labels),
            x.repeat(len(classes), 1, 1, 1), levels, self.noise.high, self.log_prior, self.probe_set.to(x),
        )  # fmt: skip
        return densities.view(len(classes), len(x)).T - torch.log(x.new_tensor(self.num_classes))

    def log_prior(self, x: Tensor) -> Tensor:
        """log p_high(x) in nats, (batch,)."""
        assert isinstance(self.noise, ConditionalNoise)
        return log_gaussian(x, self.denoiser.mean, self.noise.high**2 + self.denoiser.sigma_data**2)

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        """The underlying denoiser; Tweedie's formula for ``log_joint`` would approximate it."""
        self.check_sigma(sigma)
        return self.denoiser.denoise(x, sigma, y)
