"""Classification-denoising networks (CDN; Thiry and Guth 2024, arXiv 2410.03505) and their control."""

from __future__ import annotations

from torch import Tensor

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.noise_levels import check_noise_level, per_sample, trained_levels
from robustgen.classifiers.noisy_networks import DataScale, NoisyBackbone
from robustgen.classifiers.softmax import Mirrored
from robustgen.types import ConditionalNoise, Density


class NoisyClassifier(DataScale, Classifier):
    """Abstract base: p_sigma(c | y) of a noisy image y = x + sigma eps, with sigma as an input.

    ``widths``: channels at each resolution, from full size on, each half of the one before; ``blocks``:
    residual blocks at each; ``low`` and ``high``: the noise levels of the training, in pixel units. A clean
    image is classified at ``low``.
    """

    has_energy: bool

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        *,
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 2,
        low: float = 0.01,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.noise = trained_levels(low, high)
        self.test_sigma = low
        self.register_scale(input_shape)
        self.backbone = NoisyBackbone(input_shape, num_classes, widths, blocks, self.has_energy)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        # Not CDN's log_joint, though its softmax is the same: the common term of hundreds of nats would
        # cost the logits their last digits.
        return self._heads(x, self._levels(x, sigma))[0]

    def _levels(self, x: Tensor, sigma: float | Tensor | None) -> Tensor:
        """sigma as (batch,), the test level if None; UnsupportedError outside the levels of the training."""
        assert isinstance(self.noise, ConditionalNoise)
        if sigma is not None:
            check_noise_level(sigma, self.noise)
        return per_sample(self.noise.low if sigma is None else sigma, x)

    def _heads(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits l_c (batch, classes) and energy E (batch,), at sigma (batch,)."""
        return self.backbone(self._scaled(x, sigma), sigma)

    def _scaled(self, x: Tensor, sigma: Tensor) -> Tensor:
        """u = (x - m) / sqrt(sigma^2 + sigma_data^2), at sigma (batch,)."""
        return (x - self.mean) * (sigma**2 + self.sigma_data**2).rsqrt()[:, None, None, None]

    def _with_energy(self, x: Tensor, sigma: Tensor, energy: Tensor) -> Tensor:
        """log p (batch,) in nats, up to a constant per sigma: -|x - m|^2 / (2 (sigma^2 + sigma_data^2)) +
        (sigma_data / sigma) energy; see CDN."""
        squares = (x - self.mean).square().sum((1, 2, 3))
        return -squares / (2 * (sigma**2 + self.sigma_data**2)) + self.sigma_data / sigma * energy


class CDN(NoisyClassifier):
    """log p_sigma(y, c) of a noisy image y and its class c, in one forward pass.

    log p_sigma(y, c) = -|y - m|^2 / (2 (sigma^2 + sigma_data^2)) + (sigma_data / sigma) E(u, sigma)
    + l_c(u, sigma), with u = (y - m) / sqrt(sigma^2 + sigma_data^2). By Tweedie's formula the first
    term alone denoises as the scalar Wiener filter; with grad_u E = F, the second adds c_out F, where
    c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2), as in EDM's preconditioning (Karras et al.
    2022, table 1). The class enters only through the logits l_c, so grad log p(c | y) does too.
    """

    density: Density = "unnormalised"
    has_energy = True

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        levels = self._levels(x, sigma)
        logits, energy = self._heads(x, levels)
        return logits + self._with_energy(x, levels, energy)[:, None]


class NoisySoftmax(NoisyClassifier):
    """The control of CDN: the logits l_c of the same backbone, trained by cross-entropy alone.

    There is no density and no denoiser. What it gains over a plain softmax is due to noise as augmentation.
    """

    has_energy = False


class MirroredNoisySoftmax(Mirrored, NoisySoftmax):
    """NoisySoftmax with the mean logits of an image and its mirror image."""
