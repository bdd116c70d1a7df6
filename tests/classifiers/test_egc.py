"""EGC: what holds for any weights: its two branches, their scale, and the label that it may be given."""

import pytest
import torch
from torch.nn import functional

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.cdn import NoisySoftmax
from robustgen.classifiers.egc import EGC, attention_pool
from robustgen.errors import UnsupportedError

SIGMAS = (0.01, 0.3, 1.0)


def random_egc(shape=(1, 8, 8), seed=0):
    torch.manual_seed(seed)
    model = EGC(4, shape, widths=(6, 8), blocks=1)
    model.fit_scale(torch.rand(50, *shape))
    for block in model.modules():
        if hasattr(block, "modulation"):  # 0 at first: then neither sigma nor the label would matter
            torch.nn.init.normal_(block.modulation.weight, std=0.3)
    return model.double().eval()


def pictures(n=3, shape=(1, 8, 8)):
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def levels(sigma, n=3):
    return torch.full((n,), sigma, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (3, 32, 32)])
def test_one_forward_gives_both_branches_for_any_shape(shape):
    model, x = random_egc(shape), pictures(3, shape)
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    assert model.supports == {"logits", "log_joint", "log_prob", "denoise"}
    assert model.class_map(x, sigma).shape == (3, 4, *shape[1:])
    joint = model.log_joint(x, sigma)
    assert torch.allclose(joint.softmax(1), model.logits(x, sigma).softmax(1), atol=1e-10)
    assert torch.allclose(joint.logsumexp(1), model.log_prob(x, sigma))
    assert torch.equal(model.logits(x), model.logits(x, 0.01))
    assert model.denoise(x, sigma, torch.tensor([0, 1, 2])).shape == x.shape


def test_pooling_is_attention_with_the_mean_place_as_query():
    maps = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    places = maps.flatten(2).transpose(1, 2)
    expected = functional.scaled_dot_product_attention(places.mean(1, keepdim=True), places, places)
    torch.testing.assert_close(attention_pool(maps), expected.squeeze(1))
    same = torch.tensor([1.0, -2.0, 0.5, 3.0])
    torch.testing.assert_close(attention_pool(same.view(1, 4, 1, 1).expand(1, 4, 3, 2)), same[None])


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_energy_is_sigma_log_p_and_its_gradient_the_score(sigma):
    """D - scalar Wiener = c_out grad_u sum_hw LSE M: of order 1 at every level, as EDM's network."""
    model, x = random_egc(), pictures()
    total = model.sigma_data**2 + sigma**2
    u = ((x - model.mean) * total.rsqrt()).requires_grad_()
    maps = model.class_map(u * total.sqrt() + model.mean, levels(sigma))
    (gradient,) = torch.autograd.grad(maps.logsumexp(1).sum(), u)
    wiener = model.mean + model.sigma_data**2 / total * (x - model.mean)
    share = sigma * model.sigma_data * total.rsqrt() * gradient
    assert torch.allclose(model.denoise(x, sigma), wiener + share, atol=1e-9)
    # and the base class's own way, by the joint, comes to the same
    assert torch.allclose(model.denoise(x, sigma), Classifier.denoise(model, x, sigma), atol=1e-9)


def test_without_its_network_it_denoises_as_the_scalar_wiener_filter():
    model, x = random_egc(), pictures()
    for layer in [*model.to_maps, model.backbone.head]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for sigma in SIGMAS:
        expected = model.mean + model.sigma_data**2 / (model.sigma_data**2 + sigma**2) * (x - model.mean)
        assert torch.allclose(model.denoise(x, sigma), expected, atol=1e-9)
        assert torch.allclose(model.denoise(x, sigma, torch.tensor([0, 1, 3])), expected, atol=1e-9)


def test_the_branches_agree_on_a_map_without_places_and_may_differ_on_another(monkeypatch):
    model, x, sigma = random_egc(), pictures(1), 0.2
    flat = torch.tensor([0.1, 0.5, 0.3, -1.0]).double().view(1, 4, 1, 1).expand(1, 4, 8, 8)
    monkeypatch.setattr(model, "class_map", lambda *_: flat)
    scale = float(model.sigma_data) / sigma
    energies = model.class_energies(x, sigma)
    torch.testing.assert_close(energies - energies[:, :1], scale * 64 * (flat - flat[:, :1])[:, :, 0, 0])
    assert int(model.logits(x, sigma).argmax()) == int(energies.argmax()) == 1
    # one loud place that the mean place resembles wins the pooling, not the sum
    loud = torch.zeros(1, 4, 8, 8, dtype=torch.float64)
    loud[:, 0] = 0.2
    loud[0, 1, 0, 0] = 12.0
    monkeypatch.setattr(model, "class_map", lambda *_: loud)
    assert int(model.class_energies(x, sigma).argmax()) == 0
    assert int(model.logits(x, sigma).argmax()) == 1


def test_the_density_sums_classes_at_every_place(monkeypatch):
    """Every place may be of a class of its own: more pictures than those of one class throughout."""
    model, x = random_egc(), pictures(2)
    maps = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    monkeypatch.setattr(model, "class_map", lambda *_: maps)
    sigma = float(model.sigma_data)  # where the scale is 1
    assert (model.log_prob(x, sigma) > model.class_energies(x, sigma).logsumexp(1) + 1).all()
    squares = (x - model.mean).square().sum((1, 2, 3)) / (4 * sigma**2)
    expected = maps.exp().sum(1).log().sum((1, 2)) - squares
    torch.testing.assert_close(model.log_prob(x, sigma), expected)


def test_a_label_changes_the_denoiser_and_never_the_logits():
    model, x = random_egc(), pictures()
    none = torch.full((3,), 4)
    assert torch.equal(model.denoise(x, 0.3, none), model.denoise(x, 0.3))
    first, second = (model.denoise(x, 0.3, torch.full((3,), k)) for k in (0, 1))
    assert float((first - second).abs().max()) > 1e-4
    before = model.logits(x, 0.3)
    with torch.no_grad():
        model.label.weight[:4] += 5
    assert torch.equal(model.logits(x, 0.3), before)


def test_the_energy_reaches_every_pixel_and_its_gradient_is_one():
    model, x = random_egc(), pictures(1)
    hessian = torch.autograd.functional.hessian(lambda v: model.log_prob(v, 0.3).sum(), x).view(64, 64)
    assert torch.allclose(hessian, hessian.T, atol=1e-9)
    assert bool((hessian.abs().sum(1) > 0).all())


def test_its_backbone_is_that_of_the_twin():
    twin = NoisySoftmax(4, (1, 8, 8), widths=(6, 8), blocks=1).state_dict()
    model = random_egc().state_dict()
    assert {k: model[k].shape for k in twin} == {k: v.shape for k, v in twin.items()}


@pytest.mark.parametrize("method", ["logits", "log_joint", "log_prob", "denoise", "class_energies"])
def test_outside_the_levels_nothing_is_said_of_a_picture(method):
    for sigma in (0.0, 1.5, float("nan")):
        with pytest.raises(UnsupportedError, match="outside the noise levels"):
            getattr(random_egc(), method)(pictures(), sigma)


def test_normalised_places_keep_their_odds_and_take_the_classifier_out_of_the_energy():
    """With no inner products M is log p(k | place): logsumexp 0, and the denoiser is the Gaussian's."""
    plain, x = random_egc(), pictures()
    for layer in plain.to_maps:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    normalised = EGC(4, (1, 8, 8), widths=(6, 8), blocks=1, normalised=True).double().eval()
    normalised.load_state_dict(plain.state_dict())
    for sigma in SIGMAS:
        maps = plain.class_map(x, levels(sigma))
        taken_off = maps - normalised.class_map(x, levels(sigma))
        torch.testing.assert_close(taken_off, maps.logsumexp(1, keepdim=True).expand_as(maps))
        expected = plain.mean + plain.sigma_data**2 / (plain.sigma_data**2 + sigma**2) * (x - plain.mean)
        torch.testing.assert_close(normalised.denoise(x, sigma), expected)
        assert not torch.allclose(plain.denoise(x, sigma), expected, atol=1e-6)
