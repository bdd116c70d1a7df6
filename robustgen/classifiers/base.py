"""The interface of every classifier and denoiser, and the adapter for a plain ``torch.nn.Module``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustgen.classifiers.noise_levels import check_noise_level, per_sample
from robustgen.errors import UnsupportedError
from robustgen.types import ConditionalNoise, Density, Noise, NoNoise


class Denoiser(nn.Module):
    """An estimate of E[x | x + sigma n], optionally given the label.

    Attributes: ``levels``, the noise levels it was trained on (another ``sigma`` is an error);
    ``input_shape`` (channels, height, width); ``num_classes``, for a denoiser that takes labels;
    ``shares_classes``, whether one forward pass denoises under every label.
    """

    num_classes: int
    shares_classes: bool = False
    levels: ConditionalNoise
    input_shape: tuple[int, int, int]

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        """Posterior mean of the clean images, same shape as ``x``.

        ``x``: noisy images (batch, channels, height, width), not clipped; ``sigma``: a float or (batch,);
        ``y``: labels (batch,), or None for the mean over labels.
        """
        raise NotImplementedError

    def denoise_pairs(self, x: Tensor, sigma: float | Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        """Posterior means of x[rows] given ``labels``, (pairs, channels, height, width); ``rows`` and
        ``labels`` have shape (pairs,)."""
        return self.denoise(x[rows], per_sample(sigma, x)[rows], labels)

    def forward(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        return self.denoise(x, sigma, y)


class Classifier(nn.Module):
    """An image classifier, joint or discriminative.

    A subclass implements ``logits`` **or** ``log_joint``; everything else has a default. With
    ``log_joint``, log_joint(x)[y] = log p(x, y) up to a constant, and its softmax is p(y | x).

    Attributes: ``num_classes``; ``input_shape`` (channels, height, width); ``stochastic``, whether
    two calls may differ; ``density``, how ``log_prob`` relates to log p(x); ``noise``, the noise levels
    of the density; ``test_sigma``, the level used for ``sigma=None``; ``calls_per_image``, the number
    of network evaluations behind the logits of one image.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    stochastic: bool = False
    density: Density | None = None
    noise: Noise = NoNoise()
    test_sigma: float | None = None
    calls_per_image: int = 1

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """Unnormalised log p(y | x), shape (batch, classes), for images x in [0, 1]."""
        return self.log_joint(x, sigma)

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """log p_sigma(x, y) in nats, up to one constant per sigma, shape (batch, classes)."""
        raise UnsupportedError(
            f"{type(self).__name__} has no log p(x, y)",
            expected="a joint or generative classifier",
            remedy="'robustgen show MODEL' says what a model offers",
        )

    def log_prob(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """log p_sigma(x) in nats, shape (batch,): exact, a bound or unnormalised, as ``density`` says."""
        return self.log_joint(x, sigma).logsumexp(1)

    def denoise(self, x: Tensor, sigma: float | Tensor, y: Tensor | None = None) -> Tensor:
        """E[x0 | x], or E[x0 | x, y], by Tweedie's formula: x + sigma^2 grad log p_sigma(x[, y]).

        The formula holds for the density of noisy images at that sigma. UnsupportedError for a model
        without noise levels, and for a ``sigma`` outside them.
        """
        self.check_sigma(sigma)
        levels = torch.as_tensor(sigma, device=x.device, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return x + levels**2 * self.input_gradient(x, sigma, lambda joint: _marginal_or_class(joint, y))

    def surrogate(self, x: Tensor) -> Tensor:
        """Differentiable logits that replace ``logits`` in the backward pass of an attack (BPDA).

        Optional, for a model with a step that has no useful gradient, such as a purifier (Athalye et
        al. 2018, arXiv:1802.00420).
        """
        raise UnsupportedError(f"{type(self).__name__} has no differentiable surrogate of its logits")

    def input_gradient(
        self, x: Tensor, sigma: float | Tensor | None, score: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Gradient in x of score(log_joint(x, sigma)), where ``score`` maps (batch, classes) to (batch,)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(score(self.log_joint(x, sigma)).sum(), x)[0]

    def check_sigma(self, sigma: float | Tensor) -> None:
        """Raise UnsupportedError unless the model can denoise at ``sigma``."""
        if "denoise" not in self.supports or not isinstance(self.noise, ConditionalNoise):
            raise UnsupportedError(
                f"{type(self).__name__} has no denoiser: it is not a density of noisy pictures",
                expected="a noise-conditional model, such as cdn",
            )
        check_noise_level(sigma, self.noise)

    def reseed(self, seed: int) -> None:
        """Seed the model's own random generator; does nothing for a deterministic model."""

    @property
    def supports(self) -> frozenset[str]:
        """The available methods among logits, log_joint, log_prob, denoise and surrogate, found by what the
        subclass overrides."""
        cls = type(self)
        available = set()
        joint = cls.log_joint is not Classifier.log_joint
        if joint or cls.logits is not Classifier.logits:
            available.add("logits")
        if joint:
            available.add("log_joint")
        if joint or cls.log_prob is not Classifier.log_prob:
            available.add("log_prob")
        if cls.denoise is not Classifier.denoise or (joint and isinstance(self.noise, ConditionalNoise)):
            available.add("denoise")
        if cls.surrogate is not Classifier.surrogate:
            available.add("surrogate")
        return frozenset(available)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


def _marginal_or_class(log_joint: Tensor, y: Tensor | None) -> Tensor:
    """log p(x) without labels, log p(x, y) with them, (batch,)."""
    return log_joint.logsumexp(1) if y is None else log_joint.gather(1, y[:, None]).squeeze(1)


class PlainClassifier(Classifier):
    """Adapter for a torch.nn.Module that maps images in [0, 1] to logits.

    The module may have an attribute ``stochastic`` and a method ``reseed(seed)`` of its own. It is called
    with a copy of the images, since a module may normalise its input in place.
    """

    def __init__(self, module: nn.Module, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.module = module
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.stochastic = bool(getattr(module, "stochastic", False))

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.module(x.clone())

    def reseed(self, seed: int) -> None:
        reseed = getattr(self.module, "reseed", None)
        if reseed is not None:
            reseed(seed)
