"""The samplers against densities whose moments are known."""

import pytest
import torch

from robustgen.classifiers.base import Classifier, Denoiser
from robustgen.classifiers.sampling import (
    classifier_free_guided,
    classifier_guided,
    sample_denoiser,
    sample_joint,
    sgld,
)
from robustgen.types import ConditionalNoise

LEVELS = ConditionalNoise(0.01, 1.0)
MEANS = torch.tensor([[0.2, 0.7], [0.9, 0.1]], dtype=torch.float64)
COVARIANCES = torch.tensor([[[0.02, 0.01], [0.01, 0.03]], [[0.01, 0.0], [0.0, 0.04]]], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_class(x, sigma, k):
    """E[x0 | x, k], x (n, 1, 1, 2), and log p(x, k) (n,): a Gaussian's conditional mean and density."""
    noisy = COVARIANCES[k] + sigma**2 * torch.eye(2, dtype=torch.float64)
    centred = x.flatten(1) - MEANS[k]
    mean = MEANS[k] + centred @ torch.linalg.solve(noisy, COVARIANCES[k])
    law = torch.distributions.MultivariateNormal(MEANS[k], noisy)
    return mean.view_as(x), law.log_prob(x.flatten(1)) + SHARES[k].log()


def of_mixture(x, sigma):
    """E[x0 | x]: the classes' means weighted by p(k | x)."""
    means, joint = zip(*(of_class(x, sigma, k) for k in range(2)), strict=True)
    weights = torch.stack(joint, 1).softmax(1)
    return sum(weights[:, k, None, None, None] * means[k] for k in range(2))


def test_sgld_has_the_moments_of_its_exact_law():
    """On N(mean, scale^2) the chain is linear, so its law is known at every step, not only at the end."""
    mean, scale, a, noise, steps = 0.7, 0.5, 0.05, 0.2, 13
    x = torch.full((40_000, 1, 1, 1), -1.0)
    samples = sgld(
        lambda z: -((z - mean) ** 2).sum((1, 2, 3)) / (2 * scale**2),
        x, steps=steps, step_size=a, noise=noise, generator=generator(),
    )  # fmt: skip
    keep = 1 - a / scale**2
    wanted_mean = mean + keep**steps * (-1.0 - mean)
    wanted_variance = noise**2 * (1 - keep ** (2 * steps)) / (1 - keep**2)
    error = (wanted_variance / 40_000) ** 0.5
    assert abs(float(samples.mean()) - wanted_mean) < 4 * error
    assert float(samples.var()) == pytest.approx(wanted_variance, rel=0.03)


def test_langevin_noise_samples_the_density_itself():
    """With noise = sqrt(2 step) the spread is that of the density; JEM's small noise sharpens it."""

    def log_prob(z):
        return -(z**2).sum((1, 2, 3)) / 2

    start = torch.zeros(20_000, 1, 1, 1)
    exact = sgld(log_prob, start, steps=300, step_size=0.02, noise=0.2, generator=generator())
    sharp = sgld(log_prob, start, steps=300, step_size=0.02, noise=0.02, generator=generator())
    assert float(exact.std()) == pytest.approx(1, rel=0.03)
    assert float(sharp.std()) == pytest.approx(0.1, rel=0.03)


def test_box_is_kept_and_the_input_untouched():
    x = torch.full((4, 1, 2, 2), 0.5)
    out = sgld(
        lambda z: 100 * z.sum((1, 2, 3)), x, steps=3, step_size=1, noise=1, generator=generator(), box=(0, 1)
    )
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.equal(x, torch.full((4, 1, 2, 2), 0.5))
    assert not out.requires_grad


def start(n):
    return torch.zeros(n, 1, 1, 2, dtype=torch.float64)


@pytest.mark.parametrize("k", [0, 1])
def test_samples_of_a_denoiser_have_the_moments_of_its_data(k):
    x = sample_denoiser(lambda x, s: of_class(x, s, k)[0], start(10_000), LEVELS, generator=generator())
    x = x.flatten(1)
    spread = COVARIANCES[k].diagonal().sqrt()
    assert ((x.mean(0) - MEANS[k]).abs() < 0.05 * spread).all()
    assert torch.allclose(x.T.cov(), COVARIANCES[k], atol=0.06 * float(COVARIANCES[k].max()))


def test_samples_of_a_mixture_have_its_shares_and_moments():
    n, mean = 10_000, SHARES @ MEANS
    x = sample_denoiser(of_mixture, start(n), LEVELS, generator=generator())
    between = [torch.outer(MEANS[k] - mean, MEANS[k] - mean) for k in range(2)]
    covariance = sum(SHARES[k] * (COVARIANCES[k] + between[k]) for k in range(2))
    assert torch.allclose(x.flatten(1).mean(0), mean, atol=0.015)
    assert torch.allclose(x.flatten(1).T.cov(), covariance, atol=0.008)
    drawn = [torch.distributions.MultivariateNormal(MEANS[k], COVARIANCES[k]).sample((n,)) for k in range(2)]
    wanted = sum(SHARES[k] * called_first(drawn[k].view(n, 1, 1, 2)) for k in range(2))
    assert called_first(x) == pytest.approx(float(wanted), abs=0.02)


def called_first(x):
    """The share of pictures that are rather of class 0."""
    joint = torch.stack([of_class(x, 0.01, k)[1] for k in range(2)], 1)
    return float((joint.argmax(1) == 0).double().mean())


def test_the_sampler_asks_only_for_levels_of_the_denoiser_and_forgets_its_start():
    asked = []

    def denoise(x, sigma):
        asked.append(sigma)
        return of_class(x, sigma, 0)[0]

    first = sample_denoiser(denoise, start(50), LEVELS, generator=generator(), steps=5)
    assert len(asked) == 20 + 2 * 5 - 1
    assert (max(asked), min(asked)) == (1.0, 0.01)
    elsewhere = sample_denoiser(denoise, start(50) + 3, LEVELS, generator=generator(), steps=5)
    assert float((first - elsewhere).abs().max()) < 0.01
    assert first.shape == (50, 1, 1, 2)


class Mixture(Denoiser):
    """The mixture as a denoiser, with labels."""

    def denoise(self, x, sigma, y=None):
        return of_mixture(x, sigma) if y is None else of_class(x, sigma, int(y[0]))[0]


def test_guidance_counts_the_gradient_of_the_class_so_many_times():
    """sigma^2 grad [log p(x) + weight log p(y | x)] by autograd, against D(x) + weight (D(x, y) - D(x))."""
    x = torch.rand(6, 1, 1, 2, dtype=torch.float64).requires_grad_()
    y, sigma = torch.ones(6, dtype=torch.long), 0.4
    joint = torch.stack([of_class(x, sigma, k)[1] for k in range(2)], 1)
    for weight in (1.0, 2.5):
        target = joint.logsumexp(1) + weight * joint.log_softmax(1)[:, 1]
        (gradient,) = torch.autograd.grad(target.sum(), x, retain_graph=True)
        assert torch.allclose(
            classifier_free_guided(Mixture(), y, weight)(x, sigma), x + sigma**2 * gradient, atol=1e-9
        )


class Joint(Classifier):
    """The mixture as a joint model, log p_sigma(x, k)."""

    num_classes, input_shape = 2, (1, 1, 2)

    def log_joint(self, x, sigma=None):
        return torch.stack([of_class(x, sigma, k)[1] for k in range(2)], 1)


def test_a_joint_model_guides_itself_as_the_denoisers_of_its_classes_would():
    """By gradients of log p(x, y) against the closed forms of E[x0 | x] and E[x0 | x, y]."""
    x, y = torch.rand(6, 1, 1, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    labelled = torch.where((y == 1)[:, None, None, None], of_class(x, 0.4, 1)[0], of_class(x, 0.4, 0)[0])
    without = of_mixture(x, 0.4)
    for weight in (1.0, 2.5):
        found = classifier_guided(Joint(), y, weight)(x, 0.4)
        assert torch.allclose(found, without + weight * (labelled - without), atol=1e-9)
        assert not found.requires_grad


class Bowls(Classifier):
    """log p(x, y) = -|x - centre_y|^2 / (2 scale^2)."""

    num_classes, input_shape = 2, (1, 2, 2)

    def log_joint(self, x, sigma=None):
        centres = torch.tensor([0.3, 0.6]).view(1, 2, 1, 1, 1)
        return -(x[:, None] - centres).square().sum((2, 3, 4)) / (2 * 0.05**2)


def test_joint_samples_have_the_class_asked_for_and_its_exact_law():
    """The step is one tenth of scale^2: the chain's stationary variance is noise^2 / (1 - 0.9^2)."""
    y = torch.tensor([0, 1]).repeat(3000)
    samples = sample_joint(Bowls(), y, generator=generator(), steps=100, step_size=0.1 * 0.05**2, noise=0.02)
    for k, centre in enumerate([0.3, 0.6]):
        assert float(samples[y == k].mean()) == pytest.approx(centre, abs=0.002)
        assert float(samples[y == k].var()) == pytest.approx(0.02**2 / (1 - 0.9**2), rel=0.05)
    assert samples.shape == (6000, 1, 2, 2)
    again = sample_joint(Bowls(), y, generator=generator(), steps=100, step_size=0.1 * 0.05**2, noise=0.02)
    assert torch.equal(samples, again)
    assert samples.aminmax().min >= 0
    assert samples.aminmax().max <= 1
