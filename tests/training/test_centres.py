"""GMMC's three modes: the loss of each, and whose chains the samples are."""

import math

import pytest
import torch
from torch import nn

from robustgen.classifiers.gmmc import GMMC
from robustgen.classifiers.jem import JEM
from robustgen.data import load
from robustgen.errors import UserError
from robustgen.training import Diverged, make_objective
from robustgen.training.recipe import GmmcSpec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "calibration")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GMMC(10, (1, 8, 8), sigma=0.0, features=12, radius=2.0, width=4, blocks=(1,), pool=2)


def objective(digits, **changes):
    options = {"kind": "gmmc", "steps": 3, "step_size": 0.02, "noise": 0.0, "buffer": 200}
    return make_objective(GmmcSpec(**options | changes), digits)


def energies(model, x, y):
    """|phi(x) - mu_y|^2 / 2, from the features themselves."""
    return (model.net(x) - model.centres[y]).square().sum(1) / 2


def test_discriminative_training_draws_every_picture_to_its_centre(model, digits):
    x, y = digits.images[:8], digits.labels[:8]
    loss, parts = objective(digits, beta=0.0).loss(model, x, y, generator())
    torch.testing.assert_close(loss, energies(model, x, y).mean())
    assert "gap" not in parts


def log_joint_at_rest(rule, digits, share: float) -> torch.Tensor:
    """log p(x, y) where training leaves one picture whose class is 0 with that share, else 1; (classes,)."""
    net = nn.Module()
    phi = nn.Parameter(torch.zeros(12))
    net.forward = lambda x: phi.expand(len(x), -1)
    model = GMMC(10, (1, 8, 8), sigma=0.0, features=12, radius=2.0, width=4, blocks=(1,), pool=2)
    model.net = net
    x, y = digits.images[:1].expand(100, -1, -1, -1), (torch.arange(100) >= 100 * share).long()
    solver = torch.optim.LBFGS([phi], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def closure():
        solver.zero_grad()
        loss, _ = rule.loss(model, x, y, generator())
        loss.backward()
        return loss

    solver.step(closure)
    return model.log_joint(x[:1])[0].detach()


def test_the_pull_alone_regresses_on_the_centres_and_cross_entropy_makes_probabilities(digits):
    """Two classes at shares 0.8 and 0.2: log-odds |mu|^2 K / (K - 1) (p_0 - p_1), against log(p_0 / p_1)."""
    pulled = log_joint_at_rest(objective(digits, beta=0.0), digits, 0.8)
    assert float(pulled[0] - pulled[1]) == pytest.approx(4 * 10 / 9 * 0.6, abs=1e-4)
    pushed = log_joint_at_rest(objective(digits, beta=0.0, cross_entropy=1000.0), digits, 0.8)
    assert float(pushed[0] - pushed[1]) == pytest.approx(math.log(4), abs=0.02)


def test_generative_training_pushes_samples_of_every_class_away(model, digits, monkeypatch):
    x, y = digits.images[:8], digits.labels[:8]
    rule = objective(digits, beta=0.7, energy_decay=0.1)
    samples, places = torch.rand(8, 1, 8, 8, generator=generator(1)), torch.arange(3, 11)
    monkeypatch.setattr(rule.chains, "draw", lambda *_: (samples, places))
    loss, parts = rule.loss(model, x, y, generator())
    real, fake = energies(model, x, y), energies(model, samples, torch.tensor([3, 4, 5, 6, 7, 8, 9, 0]))
    decay = 0.1 * torch.cat([real, fake]).square().mean()
    torch.testing.assert_close(loss, real.mean() - 0.7 * fake.mean() + decay)
    assert parts["gap"] == pytest.approx(float((fake.mean() - real.mean()).detach()), abs=1e-5)


def test_samples_come_nearer_to_the_centre_of_their_place(model, digits):
    rule = objective(digits, reinit=0.0)
    before = rule.chains.buffer.clone()
    rule.loss(model, digits.images[:50], digits.labels[:50], generator())
    moved = (rule.chains.buffer != before).flatten(1).any(1).nonzero().flatten()
    assert len(moved) == 50
    assert float(rule.chains.buffer.min()) >= 0
    assert float(rule.chains.buffer.max()) <= 1
    with torch.no_grad():
        own = energies(model, rule.chains.buffer[moved], moved % 10)
        assert (own < energies(model, before[moved], moved % 10)).all()
        other = energies(model, rule.chains.buffer[moved], (moved + 1) % 10)
        assert float((other - own).mean()) > float(
            (
                energies(model, before[moved], (moved + 1) % 10) - energies(model, before[moved], moved % 10)
            ).mean()
        )


def test_joint_training_is_discriminative_first(model, digits):
    rule = objective(digits, discriminative=0.4)
    x, y = digits.images[:8], digits.labels[:8]
    for progress, generative in ((0.0, False), (0.39, False), (0.4, True), (0.9, True)):
        rule.progress = progress
        _, parts = rule.loss(model, x, y, generator())
        assert ("gap" in parts) == generative


def test_with_samples_like_the_data_and_beta_one_nothing_is_learned(model, digits, monkeypatch):
    """The gradient of -log p(x | y) is 0 where data and samples have one law."""
    x, y = digits.images[:10], torch.arange(10)
    rule = objective(digits, beta=1.0)
    monkeypatch.setattr(rule.chains, "draw", lambda *_: (x, torch.arange(10)))
    loss, _ = rule.loss(model, x, y, generator())
    loss.backward()
    assert all(float(p.grad.abs().max()) < 1e-5 for p in model.parameters())


def test_the_buffer_is_part_of_the_state(model, digits):
    x, y = digits.images[:8], digits.labels[:8]
    first, second = objective(digits), objective(digits)
    first.loss(model, x, y, generator())
    assert not torch.equal(first.chains.buffer, second.chains.buffer)
    second.load_state_dict(first.state_dict())
    for rule in (first, second):  # and it is a copy: the one's next step is not the other's
        rule.loss(model, x, y, generator(5))
    assert torch.equal(first.chains.buffer, second.chains.buffer)


def test_runaway_samples_are_divergence_and_other_models_are_refused(model, digits):
    x, y = digits.images[:8], digits.labels[:8]
    with pytest.raises(Diverged, match="data and samples have diverged"):
        objective(digits, max_gap=1e-6).loss(model, x, y, generator())
    jem = JEM(10, (1, 8, 8), sigma=0.0, width=4, blocks=(1,))
    with pytest.raises(UserError, match="fixed centres"):
        objective(digits).loss(jem, x, y, generator())
