import pytest
import torch

from robustgen.classifiers.jem import JEM
from robustgen.data import load
from robustgen.errors import UserError
from robustgen.training import Diverged, make_objective
from robustgen.training.recipe import SgldSpec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return JEM(10, (1, 8, 8), sigma=0.0, width=4, blocks=(1,), pool=2)


def draw(objective, model, n, generator):
    """Samples of log p(x) and their places."""
    return objective.chains.draw(model, lambda x, _: model.log_prob(x), n, generator)


def spec(**changes):
    options = {"kind": "sgld", "steps": 3, "step_size": 0.5, "noise": 0.0, "buffer": 200}
    return SgldSpec(**options | changes)


def test_gradient_is_that_of_data_minus_that_of_samples(model, monkeypatch):
    digits = load("digits", "train")
    x, y = digits.images[:8], digits.labels[:8]
    objective = make_objective(spec(weight=0.7, energy_decay=0.1), digits)
    samples = torch.rand(8, 1, 8, 8, generator=generator(1))
    monkeypatch.setattr(objective.chains, "draw", lambda *_: (samples, torch.arange(8)))
    loss, parts = objective.loss(model, x, y, generator())
    real, fake = model.log_prob(x), model.log_prob(samples)
    ce = torch.nn.functional.cross_entropy(model(x), y)
    decay = 0.1 * torch.cat([real, fake]).square().mean()
    torch.testing.assert_close(loss, ce - 0.7 * (real.mean() - fake.mean()) + decay)
    assert parts["gap"] == pytest.approx(float((real.mean() - fake.mean()).detach()), abs=1e-6)


def test_samples_rise_in_density_and_go_back_to_the_buffer(model):
    objective = make_objective(spec(reinit=0.0), load("digits", "train"))
    before = objective.chains.buffer.clone()
    samples, places = draw(objective, model, 16, generator())
    changed = (objective.chains.buffer != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == sorted(places.tolist())
    assert len(places) == 16
    assert torch.equal(objective.chains.buffer[places], samples)
    assert model.log_prob(samples).mean() > model.log_prob(before[changed]).mean()
    assert samples.aminmax().min >= 0
    assert samples.aminmax().max <= 1
    assert all(p.requires_grad for p in model.parameters())
    assert model.training


def test_share_of_chains_that_start_anew(model):
    objective = make_objective(
        spec(reinit=0.25, steps=1, step_size=1e-9, buffer=4000), load("digits", "train")
    )
    before = objective.chains.buffer.clone()
    draw(objective, model, 4000, generator())
    renewed = ((objective.chains.buffer - before).abs().flatten(1).amax(1) > 0.01).float().mean()
    assert abs(float(renewed) - 0.25) < 0.03


def test_buffer_is_part_of_the_state(model):
    digits = load("digits", "train")
    first, second = make_objective(spec(), digits), make_objective(spec(), digits)
    draw(first, model, 16, generator())
    assert not torch.equal(first.chains.buffer, second.chains.buffer)
    second.load_state_dict(first.state_dict())
    assert torch.equal(draw(first, model, 16, generator(5))[0], draw(second, model, 16, generator(5))[0])


def test_a_buffer_that_memory_cannot_hold_is_told_in_words():
    with pytest.raises(UserError, match="does not fit into memory") as raised:
        make_objective(spec(buffer=2**31 - 1), load("digits", "train"))
    assert raised.value.details["expected"] == "room for 550 GB"


def test_model_and_samples_that_come_apart_are_divergence(model):
    digits = load("digits", "train")
    objective = make_objective(spec(max_gap=1e-6), digits)
    with pytest.raises(Diverged, match="data and samples have diverged"):
        objective.loss(model, digits.images[:8], digits.labels[:8], generator())


def test_the_likelihood_waits_for_the_discriminative_share(model):
    digits = load("digits", "train")
    x, y = digits.images[:8], digits.labels[:8]
    objective = make_objective(spec(discriminative=0.4, energy_decay=0.1), digits)
    before = objective.chains.buffer.clone()
    objective.progress = 0.39
    loss, parts = objective.loss(model, x, y, generator())
    joint = model(x)
    expected = torch.nn.functional.cross_entropy(joint, y) + 0.1 * joint.logsumexp(1).square().mean()
    torch.testing.assert_close(loss, expected)
    assert "gap" not in parts
    assert torch.equal(objective.chains.buffer, before)
    objective.progress = 0.4
    _, parts = objective.loss(model, x, y, generator())
    assert "gap" in parts
    assert not torch.equal(objective.chains.buffer, before)
