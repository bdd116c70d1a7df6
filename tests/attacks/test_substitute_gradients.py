from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from robustgen import load_data, load_model
from robustgen.attacks.losses import margin, targeted_margin
from robustgen.attacks.substitute_gradients import BPDA, NES, Smoothed, antithetic_noise, hides_gradients
from robustgen.attacks.victim import EOT, Victim
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.types import ConditionalNoise

SHAPE = (1, 3, 3)
CLASSES = 3


class Mixture(Classifier):
    """Class k is a Gaussian of mean mu_k and variance s_k^2; of noisy pictures, s_k^2 + sigma^2."""

    num_classes = CLASSES
    input_shape = SHAPE
    density = "exact"
    noise = ConditionalNoise(0.01, 2.0)

    def __init__(self) -> None:
        super().__init__()
        self.means = torch.rand(CLASSES, 9, generator=torch.Generator().manual_seed(1))
        self.variances = torch.tensor([0.05, 0.1, 0.3])

    def log_joint(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        level = torch.as_tensor(0.01 if sigma is None else sigma)
        total = self.variances + level**2
        squares = (x.flatten(1)[:, None] - self.means).square().sum(2)
        return -squares / (2 * total) - 4.5 * (2 * math.pi * total).log()

    def denoised(self, x: Tensor, sigma: float, k: Tensor) -> Tensor:
        """E[x0 | x, k], in closed form: a mean of x and mu_k, weighed by their precisions."""
        share = (sigma**2 / (self.variances[k] + sigma**2))[:, None]
        flat = x.flatten(1)
        return (flat + share * (self.means[k] - flat)).view_as(x)


class Wave(Classifier):
    """Logits (cos(w x + phase), 0), the phase being 0, or N(0, 1) at every call."""

    num_classes = 2
    input_shape = SHAPE

    def __init__(self, *, stochastic: bool = False) -> None:
        super().__init__()
        self.stochastic = stochastic
        self.w = torch.linspace(-2, 2, 9)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        angle = x.flatten(1) @ self.w
        phase = torch.randn_like(angle) if self.stochastic else 0.0
        return torch.stack([(angle + phase).cos(), torch.zeros_like(angle)], 1)


def pictures(n: int = 6) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def wave(logits: Tensor) -> Tensor:
    return logits[:, 0]


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.5])
def test_the_smoothed_direction_is_the_difference_of_two_denoised_pictures(sigma: float) -> None:
    model, x = Mixture(), pictures()
    y, k = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 2, 0, 2, 0, 1])
    view = Smoothed(Victim(model), sigma, 4)
    answer = view.gradient(x, lambda logits: targeted_margin(logits, y, k))
    # Denoisers of Gaussians are linear, so noise in pairs leaves their mean where it is without noise.
    expected = model.denoised(x, sigma, k) - model.denoised(x, sigma, y)
    assert answer.gradient is not None
    torch.testing.assert_close(sigma**2 * answer.gradient, expected, atol=1e-5, rtol=0)


def test_the_smoothed_view_answers_for_the_point_itself() -> None:
    model, x, y = Mixture(), pictures(), torch.zeros(6, dtype=torch.long)
    plain = Victim(model).gradient(x, lambda logits: margin(logits, y))
    answer = Smoothed(Victim(model), 0.5, 4).gradient(x, lambda logits: margin(logits, y))
    assert torch.equal(answer.logits, plain.logits)
    assert answer.loss is not None
    assert plain.loss is not None
    assert torch.equal(answer.loss, plain.loss)


@pytest.mark.parametrize("kind", [Smoothed, NES])
def test_gradients_over_noise_are_those_of_the_smoothed_function(
    kind: type[Smoothed] | type[NES],
) -> None:
    # E cos(w(x + sigma n)) = cos(wx) exp(-sigma^2 |w|^2 / 2)
    model, x, sigma, m = Wave(), pictures(), 0.2, 16384
    w, sine = model.w, (x.flatten(1) @ model.w).sin()[:, None]
    expected = -sine * math.exp(-(sigma**2) * float(w @ w) / 2) * w
    gradient = kind(Victim(model), sigma, m).gradient(x, wave).gradient
    assert gradient is not None
    # m / 2 pairs, each of standard deviation below that of (w n) n_i, which is sqrt(|w|^2 + w_i^2)
    error = 5 * math.sqrt(float(w @ w) + 4) / math.sqrt(m / 2)
    torch.testing.assert_close(gradient.flatten(1), expected, atol=error, rtol=0)
    assert float((-sine * w - expected).abs().amax()) > error, "the gradient without noise would do as well"


def test_the_mean_gradient_over_a_models_own_draws_is_the_analytic_one() -> None:
    # E cos(wx + n) = cos(wx) exp(-1/2); a draw's standard deviation is at most 1, and |w_i| in the gradient
    model, x, m = Wave(stochastic=True), pictures(), 4096
    answer = EOT(model, m).gradient(x, wave)
    assert answer.loss is not None
    assert answer.gradient is not None
    angle, shrunk = x.flatten(1) @ model.w, math.exp(-0.5)
    error = 5 / math.sqrt(m)
    torch.testing.assert_close(answer.loss, shrunk * angle.cos(), atol=error, rtol=0)
    expected = -shrunk * angle.sin()[:, None] * model.w
    assert bool(((answer.gradient.flatten(1) - expected).abs() <= error * model.w.abs()).all())


def test_the_logits_of_a_stochastic_model_are_logs_of_mean_probabilities() -> None:
    model, x, m = Wave(stochastic=True), pictures(2), 65536
    found = EOT(model, m).logits(x).logits
    angle = x.flatten(1) @ model.w
    phases = torch.linspace(-8, 8, 4001)
    weights = (-phases.square() / 2).softmax(0)
    waves = (angle[:, None] + phases).cos()
    logits = torch.stack([waves, torch.zeros_like(waves)], 2)
    expected = (logits.softmax(2) * weights[:, None]).sum(1).log()
    # of p, which is 0.27 to 0.73; its log moves by less than 1 / 0.27 times that
    error = 5 * 0.23 / math.sqrt(m) / 0.27
    torch.testing.assert_close(found, expected, atol=error, rtol=0)
    of_logs = (logits.log_softmax(2) * weights[:, None]).sum(1)
    assert float((of_logs - expected).abs().amin()) > error, "the mean of logs would do as well"


class Coin(Classifier):
    """Says class 1 in one call of 8 by luck alone."""

    num_classes = 2
    input_shape = SHAPE
    stochastic = True

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return functional.one_hot((torch.rand(len(x)) < 1 / 8).long(), 2).float()


def test_one_lucky_draw_breaks_nothing() -> None:
    x, y = pictures(200), torch.zeros(200, dtype=torch.long)
    assert bool(Victim(Coin()).confirm(x, y).any())
    assert not bool(EOT(Coin(), 64).confirm(x, y).any())


class Turned(torch.autograd.Function):
    """The identity, with a backward pass that points the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Linear(Classifier):
    num_classes = CLASSES
    input_shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(CLASSES, 9, generator=torch.Generator().manual_seed(2))

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return x.flatten(1) @ self.weight.T


class RoundedPictures(Linear):
    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return super().logits((x * 10).round() / 10)


class RoundedLogits(Linear):
    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return super().logits(x).floor()


class OtherBackward(Linear):
    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return super().logits(Turned.apply(x))


class Declared(Linear):
    """Logits without any gradient, and the linear model's own in their place."""

    @property
    def supports(self) -> frozenset[str]:
        return super().supports | {"surrogate"}

    def surrogate(self, x: Tensor) -> Tensor:
        return super().logits(x)

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return super().logits(x.detach())


@pytest.mark.parametrize("kind", [RoundedPictures, RoundedLogits, OtherBackward, Declared])
def test_a_hidden_gradient_is_found_and_the_loss_is_the_models_own(kind: type[Linear]) -> None:
    model, x, y = kind(), pictures(), torch.zeros(6, dtype=torch.long)

    def loss(logits: Tensor) -> Tensor:
        return targeted_margin(logits, y, y + 1)

    exact = (model.weight[1] - model.weight[0]).expand(6, 9)
    if kind is not Declared:
        hidden = Victim(model).gradient(x, loss).gradient
        assert hidden is not None
        assert float((hidden.flatten(1) * exact).sum()) <= 0, "it is not hidden"
    answer = BPDA(Victim(model)).gradient(x, loss)
    assert answer.loss is not None
    assert answer.gradient is not None
    torch.testing.assert_close(answer.gradient.flatten(1), exact)
    assert torch.equal(answer.loss, loss(model.logits(x)))
    assert hides_gradients(model)
    assert hides_gradients(FixedBatch(model, 4))


def test_an_honest_model_hides_nothing() -> None:
    assert not hides_gradients(Linear())
    assert not hides_gradients(FixedBatch(Mixture(), 4))


@pytest.mark.parametrize("name", ["diffusion-digits", "score-digits"])
def test_a_graph_that_is_built_anew_for_its_gradient_hides_nothing(name: str) -> None:
    model = load_model(name)
    assert not hides_gradients(model)
    x, y = load_data("digits").images[:2], torch.tensor([0, 1])
    ours = BPDA(Victim(model)).substitute(x, lambda z: margin(z, y))
    theirs = Victim(model).gradient(x, lambda z: margin(z, y)).gradient
    assert torch.equal(ours, theirs)


def test_the_mean_over_noise_sees_past_rounding() -> None:
    model, x, y = RoundedLogits(), pictures(), torch.zeros(6, dtype=torch.long)
    gradient = NES(Victim(model), 0.5, 4096).gradient(x, lambda z: targeted_margin(z, y, y + 1)).gradient
    assert gradient is not None
    exact = (model.weight[1] - model.weight[0]).expand(6, 9)
    assert float(functional.cosine_similarity(gradient.flatten(1), exact).amin()) > 0.99


def test_noise_belongs_to_the_point() -> None:
    x = pictures(8)
    together, alone = (
        antithetic_noise(x, 6).view(6, 8, *SHAPE),
        antithetic_noise(x[3:4], 6).view(6, 1, *SHAPE),
    )
    assert torch.equal(together[:, 3:4], alone)
    assert torch.equal(together[:3], -together[3:])
    moved = antithetic_noise(x + 1e-6, 6).view(6, 8, *SHAPE)
    assert not bool((moved == together).flatten(2).all(2).any())
    many = antithetic_noise(pictures(2000), 2)
    assert abs(float(many.std()) - 1) < 0.02


def test_views_keep_to_the_fixed_batch_and_are_counted() -> None:
    model = FixedBatch(Mixture(), 4)
    model.begin(6)
    x, y = pictures(), torch.zeros(6, dtype=torch.long)
    Smoothed(Victim(model), 0.1, 4).gradient(x, lambda z: margin(z, y[0].expand(len(z))))
    assert model.forwards.tolist() == [5.0] * 6  # the point, and four noisy copies of it
    assert model.backwards.tolist() == [4.0] * 6


def test_a_level_outside_the_training_is_read_at_the_nearest_one() -> None:
    model = Mixture()
    assert Smoothed(Victim(model), 5.0).level == 2.0
    assert Smoothed(Victim(model), 0.001).level == 0.01
    assert Smoothed(Victim(Wave()), 0.3).level is None


class OtherWithGradients(Classifier):
    """Right where gradients are off, as for a verdict, and wrong where they are on."""

    num_classes, input_shape = CLASSES, SHAPE

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        said = x.new_tensor([0.0, 1.0, 0.0] if torch.is_grad_enabled() else [1.0, 0.0, 0.0])
        return said + 0 * x.flatten(1)[:, :CLASSES]


def test_a_hit_is_believed_when_the_model_says_so_again_as_for_a_verdict() -> None:
    victim, x, y = Victim(OtherWithGradients()), torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.long)
    assert (victim.gradient(x, lambda logits: margin(logits, y)).logits.argmax(1) != y).all()
    assert not victim.confirm(x, y).any()
