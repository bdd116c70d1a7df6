import pytest
import torch
from torch.nn import functional

from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.softmax import Softmax
from robustgen.threat import ThreatModel
from robustgen.training import frozen_weights, make_objective
from robustgen.training.adversarial import projected_ascent
from robustgen.training.recipe import AdversarialSpec, FastAdversarialSpec


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Softmax(3, (1, 8, 8), width=4, blocks=(1,), pool=2)


@pytest.fixture
def batch():
    return torch.rand(16, 1, 8, 8, generator=generator()), torch.arange(16) % 3


def spec(**changes):
    return AdversarialSpec(**{"kind": "adversarial", "eps": 0.15, "steps": 10, "step_size": 0.03} | changes)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("beta", [None, 6.0])
def test_perturbation_stays_in_the_ball_and_raises_the_loss(model, batch, norm, beta):
    x, y = batch
    objective = make_objective(spec(norm=norm, beta=beta, eps=0.5), None)
    threat = ThreatModel(norm, 0.5)
    x_adv = objective.perturb(model, x, y, threat, generator())
    assert threat.contains(x, x_adv).all()
    if beta is None:  # TRADES climbs the divergence, which comes next
        assert functional.cross_entropy(model(x_adv), y) > functional.cross_entropy(model(x), y)
    divergence = functional.kl_div(
        model(x_adv).log_softmax(1), model(x).log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert divergence > 1e-6
    assert all(p.requires_grad for p in model.parameters())


def test_linear_model_gets_the_exact_maximum():
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    model = PlainClassifier(linear, 2, (1, 4, 4))
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.tensor([0, 1, 0, 1])
    objective = make_objective(spec(eps=0.1), None)
    x_adv = objective.perturb(model, x, y, ThreatModel("linf", 0.1), generator())
    # of two classes, the margin falls fastest along the sign of the difference of their weights
    direction = (linear[1].weight[1] - linear[1].weight[0]).sign().view(1, 1, 4, 4)
    best = x + 0.1 * torch.where(y.view(-1, 1, 1, 1) == 0, direction, -direction)
    torch.testing.assert_close(x_adv, best)


def test_ascend_reaches_the_nearest_point_of_a_quadratic():
    target = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    x = torch.zeros(1, 1, 1, 2)
    threat = ThreatModel("l2", 0.5)
    found = projected_ascent(lambda z: -(z - target).square().sum(), x, threat, 50, 0.1, generator())
    torch.testing.assert_close(found, 0.5 * target / 5, atol=1e-4, rtol=0)


def test_attack_runs_in_evaluation_mode_and_leaves_training_mode(batch):
    model = Softmax(3, (1, 8, 8), width=4, blocks=(1,), norm="batch")
    model.train()
    means = model.net.features[1].branch[0].running_mean
    objective = make_objective(spec(), None)
    before = means.clone()
    objective.perturb(model, *batch, ThreatModel("linf", 0.15), generator())
    assert model.training
    assert torch.equal(means, before)


def test_trades_is_natural_loss_plus_weighted_divergence(model, batch):
    objective = make_objective(spec(beta=4.0), None)
    objective.progress = 0.5
    loss, parts = objective.loss(model, *batch, generator())
    assert float(loss.detach()) == pytest.approx(parts["natural"] + 4 * parts["divergence"], rel=1e-5)
    assert parts["divergence"] > 0


def test_eps_grows_during_the_warm_up(model, batch, monkeypatch):
    objective = make_objective(spec(warm_up=0.5), None)
    seen = []

    def perturb(model, x, y, threat, generator):
        seen.append(threat.eps)
        return x

    monkeypatch.setattr(objective, "perturb", perturb)
    for objective.progress in (0.0, 0.25, 0.5, 0.9):
        objective.loss(model, *batch, generator())
    assert seen == pytest.approx([0.0015, 0.075, 0.15, 0.15])


def test_frozen_gives_back_mode_and_gradients_after_an_error(model):
    model.net.head.bias.requires_grad_(False)
    seen = []

    def fail():
        with frozen_weights(model):
            seen.append((model.training, any(p.requires_grad for p in model.parameters())))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [(False, False)]
    assert model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["net.head.bias"]


class Seen(PlainClassifier):
    """Keeps the pictures that it was asked about, and in which mode."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def logits(self, x, sigma=None):
        self.asked.append((x.detach().clone(), self.training))
        return super().logits(x)


@pytest.mark.parametrize(("beta", "asked"), [(None, 10), (6.0, 11)])
def test_a_step_asks_once_and_only_trades_asks_of_the_clean_picture(beta, asked):
    model, _ = linear_of_two()
    x, y = torch.rand(8, 1, 4, 4, generator=generator()), torch.arange(8) % 2
    make_objective(spec(beta=beta), None).perturb(model, x, y, ThreatModel("linf", 0.15), generator())
    assert len(model.asked) == asked
    assert torch.equal(model.asked[0][0], x) == (beta is not None)


def fast(**changes):
    return FastAdversarialSpec(**{"kind": "n-fgsm", "eps": 0.1} | changes)


def linear_of_two(shape=(1, 4, 4)):
    torch.manual_seed(0)
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    weight = linear[1].weight.detach()
    return Seen(linear, 2, shape), (weight[1] - weight[0]).sign().view(1, *shape)


@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_fast_is_one_step_of_eps_from_the_noise_clipped_to_the_box(noise):
    model, rise = linear_of_two()
    x, y = torch.rand(64, 1, 4, 4, generator=generator()), torch.arange(64) % 2
    objective = make_objective(fast(noise=noise), None)
    loss, parts = objective.loss(model, x, y, generator())
    (start, evaluated), (x_adv, trained) = model.asked[0], model.asked[-1]
    assert len(model.asked) == 2
    assert (evaluated, trained) == (False, True)
    # of two classes the cross-entropy rises along the sign of the difference of their weights
    step = 0.1 * torch.where(y.view(-1, 1, 1, 1) == 0, rise, -rise)
    torch.testing.assert_close(x_adv, (start + step).clamp(0, 1))
    # the noise is uniform in noise * eps either way, and not cut to the ball of eps
    moved = (start - x) / 0.1
    assert float(moved.abs().max()) <= noise + 1e-5
    assert float(moved.abs().max()) > 0.98 * noise
    assert float((x_adv - x).abs().max()) > 0.15
    assert abs(float(moved.std()) - noise / 3**0.5) < 0.05
    torch.testing.assert_close(loss, functional.cross_entropy(model.module(x_adv), y))
    accuracy = float((model.module(x_adv).argmax(1) == y).float().mean())
    assert parts["robust_accuracy"] == pytest.approx(accuracy)
    loss.backward()
    assert model.module[1].weight.grad.abs().sum() > 0


def test_fast_grows_during_the_warm_up_and_leaves_weights_without_gradients_of_the_step():
    model, _ = linear_of_two()
    x, y = torch.full((8, 1, 4, 4), 0.5), torch.arange(8) % 2
    objective = make_objective(fast(warm_up=0.5), None)
    largest = []
    for objective.progress in (0.0, 0.25, 0.5, 0.9):
        objective.loss(model, x, y, generator())
        assert model.module[1].weight.grad is None
        assert model.module[1].weight.requires_grad
        start, x_adv = model.asked[-2][0], model.asked[-1][0]
        largest.append(float((x_adv - start).abs().max()))
    assert largest == pytest.approx([0.0, 0.05, 0.1, 0.1], abs=1e-6)
