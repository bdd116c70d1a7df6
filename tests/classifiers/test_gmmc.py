"""GMMC: the simplex of its centres, and the Gaussian mixture that it is over its features."""

import math

import pytest
import torch

from robustgen.classifiers import build
from robustgen.classifiers.gmmc import GMMC, max_mahalanobis_centres
from robustgen.errors import UnsupportedError, UserError
from robustgen.types import FixedNoise


@pytest.mark.parametrize(("classes", "dims"), [(2, 1), (2, 5), (3, 2), (10, 9), (10, 64), (100, 99)])
@pytest.mark.parametrize("radius", [1.0, 10.0])
def test_centres_are_the_corners_of_a_regular_simplex(classes, dims, radius):
    centres = max_mahalanobis_centres(classes, dims, radius)
    products = centres @ centres.T
    off = -(radius**2) / (classes - 1)
    eye = torch.eye(classes, dtype=torch.float64)
    assert torch.allclose(products, off + (radius**2 - off) * eye, rtol=0, atol=1e-11 * radius**2)
    apart = torch.cdist(centres, centres)[~eye.bool()]
    assert torch.allclose(apart, torch.tensor(radius * math.sqrt(2 * classes / (classes - 1))).double())
    assert torch.allclose(centres.sum(0), torch.zeros(dims, dtype=torch.float64), atol=1e-11 * radius)
    assert int(torch.linalg.matrix_rank(centres)) == classes - 1
    assert not centres[:, classes - 1 :].any()


@pytest.mark.parametrize(("classes", "dims"), [(10, 8), (3, 1), (1, 4)])
def test_a_simplex_that_does_not_fit_is_an_error(classes, dims):
    with pytest.raises(UserError, match="does not fit") as error:
        max_mahalanobis_centres(classes, dims, 1.0)
    assert f"{classes} classes in {dims} features" in str(error.value)


def model(features=6, radius=3.0, **options):
    torch.manual_seed(0)
    net = GMMC(4, (1, 8, 8), sigma=0.03, features=features, radius=radius, width=4, blocks=(1,), **options)
    return net.double().eval()


def test_the_joint_is_a_gaussian_of_the_features_around_each_centre():
    net = model()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(net.centres, torch.eye(6, dtype=torch.float64))
    expected = law.log_prob(net.net(x)[:, None]) + 3 * math.log(2 * math.pi)
    assert torch.allclose(net.log_joint(x), expected)
    # the centres' norms are equal, so that the logits are linear in the features but for a common term
    linear = net.net(x) @ net.centres.T
    assert torch.allclose(net.logits(x).softmax(1), linear.softmax(1))


def test_with_the_picture_as_features_it_is_the_mixture_itself():
    """phi(x) = x: its score is that of the mixture, sum_k p(k | x) (mu_k - x)."""
    net = model(features=64)
    net.net = torch.nn.Flatten()
    x = torch.randn(7, 1, 8, 8, dtype=torch.float64).requires_grad_()
    (score,) = torch.autograd.grad(net.log_prob(x).sum(), x)
    posterior = torch.softmax(x.flatten(1) @ net.centres.T, 1)
    expected = posterior @ net.centres - x.flatten(1)
    assert torch.allclose(score.flatten(1), expected)
    # the share of its own draws that a two-class mixture gets right is Phi(distance / 2)
    pair = GMMC(2, (1, 8, 8), sigma=0.0, features=64, radius=1.0, width=4, blocks=(1,))
    pair.net = torch.nn.Flatten()
    y = torch.tensor([0, 1]).repeat(10_000)
    drawn = pair.centres[y] + torch.randn(len(y), 64, generator=torch.Generator().manual_seed(0))
    right = float((pair.logits(drawn.view(-1, 1, 8, 8)).argmax(1) == y).float().mean())
    assert right == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))), abs=0.01)


def test_no_picture_is_denser_than_one_at_a_centre():
    net = model().requires_grad_(False)
    x = 10 * torch.randn(50, 1, 8, 8, dtype=torch.float64)
    assert float(net.log_joint(x).max()) < 0
    net.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6)).double()
    net.requires_grad_(False)
    torch.nn.init.zeros_(net.net[1].weight)
    net.net[1].bias.copy_(net.centres[2])
    assert float(net.log_joint(x)[:, 2].abs().max()) == 0


def test_centres_are_neither_trained_nor_stored():
    net = model()
    assert not any("centres" in name for name, _ in net.named_parameters())
    assert not any("centres" in name for name in net.state_dict())


def test_it_is_a_density_at_one_noise_level_and_no_denoiser():
    options = {"num_classes": 10, "input_shape": [1, 8, 8], "sigma": 0.05, "features": 9, "width": 4}
    net = build("gmmc", options, where="test")
    assert net.supports == {"logits", "log_joint", "log_prob"}
    assert net.density == "unnormalised"
    assert net.noise == FixedNoise(0.05)
    with pytest.raises(UnsupportedError, match="no denoiser"):
        net.denoise(torch.rand(2, 1, 8, 8), 0.05)
    with pytest.raises(UserError, match="does not fit"):
        build("gmmc", options | {"features": 8}, where="test")
