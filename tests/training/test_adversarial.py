import pytest
import torch
from torch.nn import functional

from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.softmax import Softmax
from robustgen.threat import ThreatModel
from robustgen.training import frozen, make_objective
from robustgen.training.adversarial import ascend
from robustgen.training.recipe import AdversarialSpec


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
    assert functional.cross_entropy(model(x_adv), y) > functional.cross_entropy(model(x), y) or beta
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
    found = ascend(lambda z: -(z - target).square().sum(), x, threat, 50, 0.1, generator())
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
        with frozen(model):
            seen.append((model.training, any(p.requires_grad for p in model.parameters())))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [(False, False)]
    assert model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["net.head.bias"]
