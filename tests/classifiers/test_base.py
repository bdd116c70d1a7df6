"""What every classifier gets from the contract, on densities that are known in closed form."""

import pytest
import torch
from contract_models import MEANS, InPlace, TwoGaussians

from robustgen.classifiers.base import PlainClassifier
from robustgen.errors import UnsupportedError


def test_everything_follows_from_the_joint_density():
    model = TwoGaussians()
    assert model.supports == {"logits", "log_joint", "log_prob", "denoise"}
    x = torch.rand(5, 1, 2, 2)
    assert torch.equal(model(x), model.log_joint(x))
    variance = torch.tensor(0.1**2 + 0.3**2)
    classes = [torch.distributions.Normal(mean, variance.sqrt()).log_prob(x).sum((1, 2, 3)) for mean in MEANS]
    torch.testing.assert_close(model.log_prob(x, 0.3), (classes[0].exp() / 2 + classes[1].exp() / 2).log())


def test_tweedie_gives_the_posterior_mean():
    model, sigma = TwoGaussians(), torch.tensor([0.1, 0.2, 0.5])
    y = torch.tensor([0, 1, 1])
    x = torch.rand(3, 1, 2, 2)
    gain = (0.1**2 / (0.1**2 + sigma**2)).view(-1, 1, 1, 1)
    known = [MEANS[k] + gain * (x - MEANS[k]) for k in (0, 1)]
    torch.testing.assert_close(model.denoise(x, sigma, y), torch.where(y.view(-1, 1, 1, 1) == 0, *known))
    share = model.logits(x, sigma).softmax(1)[:, :, None, None, None]
    torch.testing.assert_close(model.denoise(x, sigma), share[:, 0] * known[0] + share[:, 1] * known[1])
    with pytest.raises(UnsupportedError, match="outside the noise levels"):
        model.denoise(x, 0.0)


def test_plain_module_offers_logits_alone():
    model = PlainClassifier(torch.nn.Flatten(), 4, (1, 2, 2))
    assert model.supports == {"logits"}
    for ask in (model.log_joint, model.log_prob, lambda x: model.denoise(x, 0.1)):
        with pytest.raises(UnsupportedError):
            ask(torch.rand(2, 1, 2, 2))


def test_a_plain_module_may_write_into_its_copy_of_the_pictures():
    model, x = PlainClassifier(InPlace(), 4, (1, 2, 2)), torch.rand(3, 1, 2, 2)
    before = x.clone()
    model.logits(x)
    assert torch.equal(x, before)
    (gradient,) = torch.autograd.grad(model.logits(x.requires_grad_()).sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_a_plain_module_says_itself_that_it_is_stochastic_and_is_reseeded():
    model, x = PlainClassifier(InPlace(), 4, (1, 2, 2)), torch.rand(3, 1, 2, 2)
    assert model.stochastic
    model.reseed(1)
    one = model.logits(x)
    assert not torch.equal(model.logits(x), one)
    model.reseed(1)
    assert torch.equal(model.logits(x), one)
    assert not PlainClassifier(torch.nn.Flatten(), 4, (1, 2, 2)).stochastic
