"""CDN: what holds for any weights, and what the backbone must be able to learn."""

import pytest
import torch

from robustgen.classifiers.cdn import CDN, MirroredNoisySoftmax, NoisySoftmax
from robustgen.errors import UnsupportedError
from robustgen.types import ConditionalNoise


def random_cdn(shape=(1, 8, 8), seed=0):
    torch.manual_seed(seed)
    model = CDN(4, shape, widths=(6, 8), blocks=1, low=0.01, high=1.0)
    model.fit_scale(torch.rand(50, *shape))
    return model.double().eval()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (3, 32, 32)])
def test_one_forward_gives_classes_and_density_for_any_shape(shape):
    model = random_cdn(shape)
    x = torch.rand(3, *shape, dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.2, 1.0], dtype=torch.float64)
    joint = model.log_joint(x, sigma)
    assert joint.shape == (3, 4)
    assert torch.allclose(model.logits(x, sigma).softmax(1), joint.softmax(1), atol=1e-12)
    assert torch.allclose(model.log_joint(x[1:2], 0.2), joint[1:2])
    assert torch.equal(model.logits(x), model.logits(x, 0.01))  # None means the test sigma


def test_without_its_network_it_denoises_as_the_scalar_wiener_filter():
    model = random_cdn()
    for layer in model.backbone.to_score:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.nn.init.zeros_(model.backbone.head.weight)
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    variance = model.sigma_data**2
    for sigma in (0.01, 0.3, 1.0):
        expected = model.mean + variance / (variance + sigma**2) * (x - model.mean)
        assert torch.allclose(model.denoise(x, sigma), expected, atol=1e-9)


def test_energy_gradient_has_the_scale_of_edm():
    """The network's share of the denoiser, D - scalar Wiener, is c_out F with F = grad_u E: of order 1."""
    model = random_cdn()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    torch.nn.init.zeros_(model.backbone.head.weight)
    for sigma in (0.01, 0.3, 1.0):
        total = model.sigma_data**2 + sigma**2
        share = model.denoise(x, sigma) - model.mean - model.sigma_data**2 / total * (x - model.mean)
        u = ((x - model.mean) * total.rsqrt()).requires_grad_()
        levels = torch.full((2,), sigma, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(model.backbone(u, levels)[1].sum(), u)
        assert torch.allclose(share, sigma * model.sigma_data * total.rsqrt() * gradient, atol=1e-9)


def test_class_gradient_is_a_difference_of_denoisers():
    model, sigma = random_cdn(), 0.4
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 1])
    leaf = x.clone().requires_grad_()
    chosen = model.logits(leaf, sigma).log_softmax(1).gather(1, y[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, leaf)
    assert float(gradient.abs().max()) > 1e-4
    difference = (model.denoise(x, sigma, y) - model.denoise(x, sigma)) / sigma**2
    assert torch.allclose(gradient, difference, atol=1e-9)


def test_energy_reaches_every_pixel_and_is_smooth():
    model = random_cdn()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: _score(model, v).flatten(), x).view(64, 64)
    assert torch.allclose(jacobian, jacobian.T, atol=1e-9)
    assert bool((jacobian.abs().sum(1) > 0).all())


def _score(model, x):
    energy = model.log_joint(x, 0.3).logsumexp(1).sum()
    return torch.autograd.grad(energy, x, create_graph=True)[0]


def test_the_control_has_no_density_and_no_denoiser():
    control = NoisySoftmax(4, (1, 8, 8), widths=(6, 8), blocks=1)
    assert control.supports == {"logits"}
    assert control.noise == ConditionalNoise(0.01, 1.0)
    assert control.density is None
    x = torch.rand(2, 1, 8, 8)
    assert not torch.equal(control.logits(x, 0.5), control.logits(x))
    for ask in (control.log_joint, lambda x: control.denoise(x, 0.1)):
        with pytest.raises(UnsupportedError):
            ask(x)
    joint = CDN(4, (1, 8, 8), widths=(6, 8), blocks=1)
    assert joint.supports == {"logits", "log_joint", "log_prob", "denoise"}
    same = {k: v.shape for k, v in joint.state_dict().items() if "to_score" not in k}
    assert same == {k: v.shape for k, v in control.state_dict().items()}


def test_denoising_outside_the_levels_is_an_error():
    with pytest.raises(UnsupportedError, match="outside the noise levels"):
        random_cdn().denoise(torch.rand(1, 1, 8, 8, dtype=torch.float64), 1.5)


@pytest.mark.parametrize("sigma", [0.0, 1.5, float("nan"), torch.tensor([0.1, 0.0])])
@pytest.mark.parametrize("method", ["logits", "log_joint", "log_prob", "denoise"])
def test_outside_the_levels_nothing_is_said_of_a_picture(method, sigma):
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="outside the noise levels") as error:
        getattr(random_cdn(), method)(x, sigma)
    assert "from 0.01 to 1" in str(error.value)


def test_the_control_speaks_at_its_levels_and_not_outside():
    control = NoisySoftmax(4, (1, 8, 8), widths=(6, 8), blocks=1)
    x = torch.rand(2, 1, 8, 8)
    for sigma in (None, 0.01, 1.0, torch.tensor([0.01, 1.0]), torch.tensor(0.3)):
        assert control.logits(x, sigma).isfinite().all()
    with pytest.raises(UnsupportedError, match="outside the noise levels"):
        control.logits(x, 0.0)


def test_the_mirrored_control_reads_both_views_at_its_level_and_trains_on_one():
    mirrored = MirroredNoisySoftmax(4, (1, 8, 8), widths=(6, 8), blocks=1)
    control = NoisySoftmax(4, (1, 8, 8), widths=(6, 8), blocks=1)
    control.load_state_dict(mirrored.state_dict())
    x = torch.rand(2, 1, 8, 8)
    for sigma in (None, 0.5):
        one, other = control.logits(x, sigma), control.logits(x.flip(3), sigma)
        assert not torch.allclose(one, other)
        torch.testing.assert_close(mirrored.eval().logits(x, sigma), (one + other) / 2)
        torch.testing.assert_close(mirrored.train().logits(x, sigma), one)
