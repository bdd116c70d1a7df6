import pytest
import torch

from robustgen.classifiers.jem import JEM, sgld
from robustgen.errors import UnsupportedError
from robustgen.types import FixedNoise


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return JEM(10, (1, 8, 8), sigma=0.05, width=4, blocks=(1,), pool=2)


def test_logits_are_the_joint_and_its_sum_the_density(model):
    x = torch.rand(3, 1, 8, 8)
    assert model.supports == {"logits", "log_joint", "log_prob"}
    assert model.density == "unnormalised"
    assert model.noise == FixedNoise(0.05)
    assert torch.equal(model.logits(x), model.log_joint(x))
    torch.testing.assert_close(model.log_prob(x), model.log_joint(x).exp().sum(1).log())


def test_one_noise_level_is_no_denoiser(model):
    with pytest.raises(UnsupportedError, match="no denoiser"):
        model.denoise(torch.rand(2, 1, 8, 8), 0.05)


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


def test_samples_are_reproducible_pictures_of_higher_density(model):
    options = {"steps": 30, "step_size": 0.5, "noise": 0.01}
    samples = model.sample(8, generator=generator(), **options)
    assert samples.shape == (8, 1, 8, 8)
    assert torch.equal(samples, model.sample(8, generator=generator(), **options))
    assert model.log_prob(samples).mean() > model.log_prob(torch.rand(8, 1, 8, 8)).mean()
