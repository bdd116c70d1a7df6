"""What every classifier gets from the contract, on densities that are known in closed form."""

import pytest
import torch

from robustgen.classifiers.base import Classifier, FixedBatch, PlainClassifier, serving
from robustgen.errors import UnsupportedError
from robustgen.types import ConditionalNoise

MEANS = torch.tensor([0.2, 0.8])


class TwoGaussians(Classifier):
    """Two classes of equal share, N(mean, 0.1^2 I) each, seen through noise of sigma."""

    num_classes, input_shape, density, noise = 2, (1, 2, 2), "exact", ConditionalNoise(0.01, 1.0)

    def log_joint(self, x, sigma=None):
        sigma = torch.as_tensor(0.01 if sigma is None else sigma).expand(len(x))[:, None]
        squares = (x.flatten(1)[:, None] - MEANS[:, None]).square().sum(2)
        variance = 0.1**2 + sigma**2
        return -squares / (2 * variance) - 2 * (2 * torch.pi * variance).log() - torch.tensor(2.0).log()


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


class InPlace(torch.nn.Module):
    """Normalises in place, rolls a die of its own, and answers in float64."""

    stochastic = True

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def reseed(self, seed):
        self.generator.manual_seed(seed)

    def forward(self, x):
        x -= 0.5
        return x.flatten(1).double() + torch.rand(4, generator=self.generator)


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


def test_fixed_batch_answers_in_the_precision_of_the_pictures():
    model, x = FixedBatch(PlainClassifier(InPlace(), 4, (1, 2, 2)), 2), torch.rand(3, 1, 2, 2)
    assert model.logits(x).dtype == torch.float32
    assert model.logits(x.double()).dtype == torch.float64


def test_fixed_batch_pads_and_counts_each_sample():
    seen = []
    inner = TwoGaussians()
    joint = inner.log_joint
    inner.log_joint = lambda x, sigma=None: seen.append(len(x)) or joint(x, sigma)
    model = FixedBatch(inner, 3)
    x, sigma = torch.rand(4, 1, 2, 2), torch.tensor([0.1, 0.2, 0.3, 0.4])
    model.begin(4)
    torch.testing.assert_close(model.log_joint(x, sigma), joint(x, sigma))
    assert seen == [3, 3]
    with serving(model, torch.tensor([1, 3])):
        model.logits(x[[1, 3]].requires_grad_())
    assert model.forwards.tolist() == [1, 2, 1, 2]
    assert model.backwards.tolist() == [0, 1, 0, 1]


def test_fixed_batch_pads_to_the_next_size_that_is_known_to_be_the_same():
    seen = []
    inner = TwoGaussians()
    joint = inner.log_joint
    inner.log_joint = lambda x, sigma=None: seen.append(len(x)) or joint(x, sigma)
    x = torch.rand(11, 1, 2, 2)
    for sizes, calls in (
        ((), [8, 8]),
        ([2, 4], [8, 4]),
        ([4], [8, 4]),
        ([2], [8, 8]),
        (range(1, 9), [8, 3]),
    ):
        seen.clear()
        torch.testing.assert_close(FixedBatch(inner, 8, sizes=sizes).logits(x), joint(x))
        assert seen == calls, sizes
    seen.clear()
    FixedBatch(inner, 8, sizes=[2, 4]).logits(x[:1])
    assert seen == [2]


def test_the_quick_copy_is_called_at_the_same_sizes_and_counted_in_the_same_place():
    seen = []
    inner, quick = TwoGaussians(), TwoGaussians()
    joint = quick.log_joint
    quick.log_joint = lambda x, sigma=None: seen.append(len(x)) or joint(x, sigma)
    model = FixedBatch(inner, 8, quick=quick, sizes=[4])
    model.begin(5)
    x = torch.rand(3, 1, 2, 2)
    with serving(model, torch.tensor([4, 0, 2])):
        model.quick.logits(x.requires_grad_())
        with serving(model, torch.tensor([0])):  # among those served: the row 4
            model.logits(x[:1].detach())
        model.quick.logits(x.detach())
    assert seen == [4, 4]
    assert model.forwards.tolist() == [2, 0, 2, 0, 3]
    assert model.backwards.tolist() == [1, 0, 1, 0, 1]
    model.begin(3)
    model.quick.logits(x.detach())
    assert model.forwards.tolist() == [1, 1, 1]


def test_serving_ends_after_an_error_and_costs_are_shared_where_nobody_says_who():
    model = FixedBatch(TwoGaussians(), 8, quick=TwoGaussians())
    model.begin(4)
    with pytest.raises(ZeroDivisionError), serving(model, torch.tensor([1])):
        raise ZeroDivisionError
    model.logits(torch.rand(2, 1, 2, 2))
    model.quick.logits(torch.rand(2, 1, 2, 2))
    assert model.forwards.tolist() == [1, 1, 1, 1]
    unbegun = FixedBatch(TwoGaussians(), 8)
    with serving(unbegun, torch.tensor([1])):
        assert unbegun.logits(torch.rand(2, 1, 2, 2)).shape == (2, 2)
