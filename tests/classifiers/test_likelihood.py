"""The flow's log-density against closed forms: Gaussians, mixtures, and what a wrong prior costs."""

import itertools
import math

import pytest
import torch
from mixtures import SHAPE, D, mixture, pictures
from scipy.stats import multivariate_normal

from robustgen.classifiers.likelihood import (
    exact_probes,
    flow,
    log_density,
    log_gaussian,
    reference_log_density,
)

HIGH = 100.0


def signs(steps, probes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randint(0, 2, (steps, 2, probes, *SHAPE), generator=generator) - 1).double()


def of_class(data, c):
    """The denoiser of one class, and the prior that is its own density at the highest level."""

    def denoise(z, s):
        return data.denoise(z, s, torch.full((len(z),), c, dtype=torch.int64))

    def prior(z):
        return data.log_density(z, HIGH, torch.full((len(z),), c, dtype=torch.int64))

    return denoise, prior


def exact(data, x, sigma, c=0):
    return data.log_density(x, sigma, torch.full((len(x),), c, dtype=torch.int64))


def normal(mean, covariance):
    """log N(x; mean, covariance) of pictures, by scipy."""
    law = multivariate_normal(mean.flatten().numpy(), covariance.numpy())
    return lambda x: torch.from_numpy(law.logpdf(x.flatten(1).numpy()))


def test_log_gaussian():
    x, mean, variance = pictures(4), pictures(1)[0], torch.tensor(0.3, dtype=torch.float64)
    expected = normal(mean, 0.3 * torch.eye(D, dtype=torch.float64))(x)
    assert torch.allclose(log_gaussian(x, mean, variance), expected, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_adaptive_solver_gives_the_density_of_a_mixture(sigma):
    data, x = mixture(), pictures(5)
    got = reference_log_density(
        of_class(data, 1)[0],
        x,
        sigma,
        HIGH,
        of_class(data, 1)[1],
        probes=exact_probes(SHAPE, x),
        tolerance=1e-7,
    )
    assert torch.allclose(got, exact(data, x, sigma, 1), atol=1e-5)


def test_fixed_steps_converge_with_the_square_of_their_length():
    data, x = mixture(), pictures(5)
    sigma = torch.tensor([0.05, 0.1, 0.2, 0.5, 1.0], dtype=torch.float64)  # a level for each picture
    denoise, prior = of_class(data, 0)
    axes = exact_probes(SHAPE, x)

    def error(steps):
        probes = axes.expand(steps, 2, *axes.shape)
        return (log_density(denoise, x, sigma, HIGH, prior, probes) - exact(data, x, sigma)).abs()

    coarse, fine = error(60), error(120)
    assert float(fine.max()) < 0.02
    assert float(coarse.sum() / fine.sum()) == pytest.approx(4, rel=0.25)


def test_every_sign_together_makes_the_trace_exact():
    """Hutchinson's mean over all 2^d probes is the trace, by the Jacobian as an oracle."""
    data, x = mixture(), pictures(3)
    levels = torch.tensor([0.1, 0.3, 1.0], dtype=torch.float64)
    denoise = of_class(data, 2)[0]
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=D)), dtype=torch.float64).view(-1, *SHAPE)
    jacobian = torch.autograd.functional.jacobian(lambda z: denoise(z, levels).flatten(1).sum(0), x)
    trace = jacobian.flatten(2).diagonal(dim1=0, dim2=2).sum(1)  # of each picture
    for probes in (every, exact_probes(SHAPE, x)):
        slope, divergence = flow(denoise, x, levels, probes)
        assert torch.allclose(slope, x - denoise(x, levels))
        assert torch.allclose(divergence, D - trace, atol=1e-10)
    one = flow(denoise, x, levels, every[5:6])[1]
    assert not torch.allclose(one, D - trace, atol=1e-3)


def test_the_gradient_is_that_of_what_is_computed():
    data, x = mixture(), pictures(2)
    denoise, prior = of_class(data, 0)
    sigma = torch.tensor([0.1, 0.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: log_density(denoise, z, sigma, HIGH, prior, signs(2, 2)), x.requires_grad_(), atol=1e-7
    )


def test_where_the_denoiser_is_linear_the_gradient_is_the_gaussian_score():
    """Of N(0, v): D(y) = v / (v + sigma^2) y, whose trace does not depend on y."""
    v, sigma = 0.09, torch.full((2,), 0.2, dtype=torch.float64)

    def denoise(y, level):
        return y * (v / (v + level**2))[:, None, None, None]

    def prior(y):
        return -0.5 * (y**2).flatten(1).sum(1) / (v + HIGH**2)

    x = pictures(2).requires_grad_()
    density = log_density(denoise, x, sigma, HIGH, prior, signs(400, 1))
    (score,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(score, -x.detach() / (v + 0.2**2), rtol=1e-3, atol=1e-6)


def test_the_gradient_tends_to_the_exact_score():
    data, x = mixture(), pictures(3).requires_grad_()
    denoise, prior = of_class(data, 0)
    sigma = torch.full((3,), 0.3, dtype=torch.float64)
    axes = exact_probes(SHAPE, x)
    got = log_density(denoise, x, sigma, HIGH, prior, axes.expand(120, 2, *axes.shape)).sum()
    (gradient,) = torch.autograd.grad(got, x)
    score = (denoise(x, sigma) - x).detach() / 0.3**2  # Tweedie
    assert float((gradient - score).norm() / score.norm()) < 5e-3


@pytest.mark.parametrize("high", [1.0, 10.0])
def test_what_a_round_prior_costs_on_gaussian_data(high):
    """Gaussian data flow linearly, so the error of N(mean, high^2 + sigma_data^2) is a closed form.

    Its mean over the data is KL(p_high, prior); at high = 1 and the spread of digits it is no rounding.
    """
    generator = torch.Generator().manual_seed(3)
    mixing = 0.3 * torch.randn(D, D, generator=generator, dtype=torch.float64)
    covariance, eye = mixing @ mixing.T, torch.eye(D, dtype=torch.float64)
    mean = torch.full((D,), 0.5, dtype=torch.float64)
    sigma, sigma_data = 0.1, covariance.diag().mean().sqrt()

    def denoise(z, s):
        gains = torch.linalg.solve(covariance + s[0] ** 2 * eye, covariance)
        return (mean + (z.flatten(1) - mean) @ gains).view_as(z)

    at = {s: normal(mean, covariance + s**2 * eye) for s in (sigma, high)}
    prior_variance = high**2 + sigma_data**2
    values, basis = torch.linalg.eigh(covariance)
    drawn = torch.randn(400, D, generator=generator, dtype=torch.float64) * (values + sigma**2).sqrt()
    x = (mean + drawn @ basis.T).view(-1, *SHAPE)
    got = reference_log_density(
        denoise, x, sigma, high, lambda z: log_gaussian(z, mean.view(SHAPE), prior_variance),
        probes=exact_probes(SHAPE, x), tolerance=1e-8,
    )  # fmt: skip
    stretch = ((values + high**2) / (values + sigma**2)).sqrt()
    end = (mean + drawn * stretch @ basis.T).view(-1, *SHAPE)
    wrong = normal(mean, prior_variance * eye)(end) - at[high](end)
    assert torch.allclose(got, at[sigma](x) + wrong, atol=1e-4)
    ratio = (values + high**2) / prior_variance
    cost = float((ratio - 1 - ratio.log()).sum() / 2)  # KL of two Gaussians with one mean
    assert float(-wrong.mean()) == pytest.approx(cost, abs=4 * float(wrong.std()) / math.sqrt(len(x)))
    assert (cost > 0.01) == (high == 1.0)
