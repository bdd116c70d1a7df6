"""The score-based classifier against the exact log p(x, y) of a mixture, and what holds for any denoiser."""

import math

import pytest
import torch
from mixtures import D, mixture, pictures

from robustgen.classifiers.likelihood import exact_probes
from robustgen.classifiers.score import ScoreClassifier
from robustgen.errors import UnsupportedError, UserError


def fine(data, sigma, steps):
    """Many steps, and the exact trace."""
    model = ScoreClassifier(data, steps=steps, sigma=sigma).double()
    model.probe_set = exact_probes(data.input_shape, data.mean).expand(steps, 2, D, *data.input_shape)
    return model


def test_densities_and_posteriors_of_a_mixture():
    data, x = mixture(spread=0.3), pictures(6)
    model, exact = fine(data, 0.2, 160), data.log_joint(x, 0.2)
    joint = model.log_joint(x)
    assert float(exact.std()) > 0.5
    assert torch.allclose(joint, exact, atol=0.02)
    assert torch.allclose(joint.softmax(1), exact.softmax(1), atol=0.005)
    bits = (model.log_prob(x) - exact.logsumexp(1)) / (D * math.log(2))
    assert float(bits.abs().max()) < 0.005


def test_the_class_gradient_is_the_difference_of_scores():
    data, sigma = mixture(spread=0.3), 0.3
    x = pictures(4)
    y, other = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2])
    scores = (data.denoise(x, sigma, y) - data.denoise(x, sigma, other)) / sigma**2

    def error(steps):
        model, leaf = fine(data, sigma, steps), x.clone().requires_grad_()
        joint = model.log_joint(leaf)
        difference = joint.gather(1, y[:, None]) - joint.gather(1, other[:, None])
        (gradient,) = torch.autograd.grad(difference.sum(), leaf)
        return float((gradient - scores).norm() / scores.norm())

    coarse, fine_error = error(30), error(90)
    assert fine_error < 0.02
    assert coarse / fine_error > 5  # of second order: 9


def test_its_denoiser_is_the_one_that_it_stands_on():
    data, x, y = mixture(), pictures(2), torch.tensor([1, 0])
    model = ScoreClassifier(data, sigma=0.2).double()
    assert torch.equal(model.denoise(x, 0.3, y), data.denoise(x, 0.3, y))


def test_gradients_are_exact_for_few_steps_and_several_levels():
    model = ScoreClassifier(mixture(), steps=2, sigma=0.2).double()
    x, sigma = pictures(2).requires_grad_(), torch.tensor([0.1, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: model.log_joint(z, sigma), x, atol=1e-6)


def test_it_is_deterministic_and_no_row_depends_on_its_batch():
    data, x = mixture(), pictures(5)
    model, again, other = (ScoreClassifier(data, steps=3, sigma=0.2, seed=s).double() for s in (0, 0, 1))
    assert torch.equal(model.log_joint(x), again.log_joint(x))
    assert not torch.allclose(model.log_joint(x), other.log_joint(x))
    assert torch.allclose(model.log_joint(x)[3:4], model.log_joint(x[3:4]), atol=1e-12)
    assert torch.allclose(model.log_joint(x, 0.2), model.log_joint(x), atol=1e-12)
    mixed = model.log_joint(x, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64))
    assert torch.allclose(mixed[2:3], model.log_joint(x[2:3], 0.3), atol=1e-12)


def test_it_says_what_it_costs_and_offers():
    data = mixture()
    model = ScoreClassifier(data, steps=3, probes=2, sigma=0.2).double()
    data.asked = 0
    model.logits(pictures(4))
    assert data.asked == 4 * model.calls_per_image == 4 * 18
    assert model.supports == {"logits", "log_joint", "log_prob", "denoise"}
    assert model.density == "unnormalised"  # of the pictures that a report reads it at
    assert not model.stochastic


@pytest.mark.parametrize("sigma", [0.001, 200.0])
def test_outside_the_levels_nothing_is_said(sigma):
    model = ScoreClassifier(mixture(), sigma=0.2).double()
    for ask in (model.log_joint, lambda x, s: model.denoise(x, s)):
        with pytest.raises(UnsupportedError, match="outside the noise levels"):
            ask(pictures(1), sigma)
    with pytest.raises(UnsupportedError, match="outside the noise levels"):
        ScoreClassifier(mixture(), sigma=sigma)


@pytest.mark.parametrize("options", [{"steps": 0}, {"probes": 0}])
def test_a_flow_without_steps_or_probes_is_refused(options):
    with pytest.raises(UserError, match="steps and probes"):
        ScoreClassifier(mixture(), **options)


def test_no_picture_has_no_densities():
    model = ScoreClassifier(mixture(), steps=2, sigma=0.2).double()
    assert model.log_joint(pictures(0)).shape == (0, model.num_classes)
