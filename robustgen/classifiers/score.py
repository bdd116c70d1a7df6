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
    """log p_sigma(x, c) by the probability-flow ODE of a class-conditional denoiser; classes equally likely.

    ``over``: the denoiser. From level sigma to its highest the flow goes in ``steps`` steps of Heun's
    method in log sigma. The probes of the trace are a part of the model, ``probes`` for each slope, drawn
    once from ``seed``, the same for all pictures and classes: the classifier is deterministic.

    A picture is read at the level ``sigma`` (pixel units) where none is given: p_sigma is the density
    of pictures with noise of that level, and not of clean ones, whose grey levels are discrete and
    have no density at all.

    The prior at the highest level is N(m, high^2 + sigma_data^2) for every class, with the mean
    picture m and the deviation sigma_data that the denoiser keeps: what the classes differ by at that
    level is not in it.

    log p is normalised, up to the errors of solver and probes, but as a density of noisy pictures. A
    report reads it at pictures without that noise, where it is larger than at any that p_sigma is likely
    to draw, so that bits per dimension of its rows would be the code length of nothing: it is declared
    ``unnormalised`` here. ``benchmarks/diffusion.py`` measures bits per dimension at noisy pictures.
    """

    density: Density = "unnormalised"
    probe_set: Tensor

    def __init__(
        self, over: EDMDenoiser, *, steps: int = 6, probes: int = 1, sigma: float = 0.2, seed: int = 0
    ) -> None:
        super().__init__()
        if steps < 1 or probes < 1:
            raise UserError(
                "a flow needs steps and probes", expected="1 or more", got=f"steps={steps}, probes={probes}"
            )
        check_noise_level(sigma, over.levels)
        self.denoiser = over
        self.num_classes = over.num_classes
        self.input_shape = over.input_shape
        self.noise = ConditionalNoise(over.levels.low, over.levels.high)
        self.test_sigma = sigma
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (steps, 2, probes, *over.input_shape), generator=generator)
        self.register_buffer("probe_set", 2.0 * signs - 1)
        # two calls a step and class, each with a backward pass for each of the probes
        self.calls_per_image = 2 * steps * over.num_classes

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        assert isinstance(self.noise, ConditionalNoise)
        sigma = self.test_sigma if sigma is None else sigma
        assert sigma is not None
        check_noise_level(sigma, self.noise)
        every = torch.arange(self.num_classes, device=x.device)
        labels, levels = every.repeat_interleave(len(x)), per_sample(sigma, x).repeat(len(every))
        densities = log_density(
            lambda z, s: self.denoiser.denoise(z, s, labels),
            x.repeat(len(every), 1, 1, 1), levels, self.noise.high, self.log_prior, self.probe_set.to(x),
        )  # fmt: skip
        return densities.view(len(every), len(x)).T - torch.log(x.new_tensor(self.num_classes))

    def log_prior(self, x: Tensor) -> Tensor:
        """log p_high(x) in nats, (batch,)."""
        assert isinstance(self.noise, ConditionalNoise)
        return log_gaussian(x, self.denoiser.mean, self.noise.high**2 + self.denoiser.sigma_data**2)

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        """The denoiser's own; Tweedie's formula on ``log_joint`` is it but for solver, probes and prior."""
        self.check_sigma(sigma)
        return self.denoiser.denoise(x, sigma, y)
