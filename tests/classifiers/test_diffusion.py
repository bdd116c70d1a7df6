"""The diffusion classifier against closed forms, its staged prediction, and cards over a denoiser."""

import hashlib

import pytest
import torch
import yaml
from mixtures import D, Mixture, mixture, pictures
from safetensors.torch import save_file

from robustgen.classifiers import build, fingerprint_model, load
from robustgen.classifiers.diffusion import DiffusionClassifier
from robustgen.errors import UserError
from robustgen.registry import ZooModel

LOW, HIGH = 0.1, 10.0


def gaussians(**options):
    """A classifier over classes of one Gaussian each."""
    data = mixture(classes=4, centres=1, spread=0.3, high=HIGH)
    return data, DiffusionClassifier(data, **{"levels": 100, "low": LOW, "high": HIGH, **options}).double()


def test_differences_of_gaussian_classes_are_exact():
    """|x - D|^2 is linear in the noise but for a term common to all classes, and both signs cancel it.

    What is left is the integral of |x - m|^2 sigma^2 / (s^2 + sigma^2)^2 d log sigma, by hand.
    """
    data, model = gaussians()
    x = pictures(6).requires_grad_()
    joint = model.log_joint(x)
    squares = (x.flatten(1)[:, None] - data.means[:, 0]).square().sum(2)
    factor = 0.5 * (1 / (0.3**2 + LOW**2) - 1 / (0.3**2 + HIGH**2))
    expected = -factor * squares
    got, wanted = joint - joint.mean(1, keepdim=True), expected - expected.mean(1, keepdim=True)
    assert torch.allclose(got, wanted, rtol=0.01, atol=1e-3)  # levels are many, but no integral
    # and so the gradient of a difference of classes, a difference of scores, at every x
    (gradient,) = torch.autograd.grad((joint[:, 0] - joint[:, 1]).sum(), x)
    scores = 2 * factor * (data.means[0, 0] - data.means[1, 0])
    assert torch.allclose(gradient.flatten(1), scores.expand(6, D), rtol=0.01)


def test_the_elbo_of_a_mixture_is_its_smoothed_log_density():
    """With the exact posterior mean the bound is tight: E_n log p_low(x + low n | c), up to a constant."""
    data = mixture(spread=0.2, low=LOW, high=30.0)
    model = DiffusionClassifier(data, levels=4000, low=LOW, high=30.0).double()
    x = pictures(3)
    noise = torch.randn(20_000, *x.shape[1:], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    smoothed = torch.stack([data.log_joint(row + LOW * noise, LOW).mean(0) for row in x])
    joint = model.log_joint(x)
    got, wanted = joint - joint.mean(1, keepdim=True), smoothed - smoothed.mean(1, keepdim=True)
    assert float(wanted.abs().max()) > 1
    assert torch.allclose(got, wanted, atol=0.15)


def test_gradients_are_those_of_the_logits():
    model = DiffusionClassifier(mixture(), levels=3).double()
    assert torch.autograd.gradcheck(model.logits, pictures(2).requires_grad_(), atol=1e-6)


def test_the_noise_set_is_a_part_of_the_model():
    data, x = mixture(), pictures(5)
    model, again, other = (DiffusionClassifier(data, levels=4, seed=seed).double() for seed in (0, 0, 1))
    assert torch.equal(model.logits(x), again.logits(x))
    assert not torch.allclose(model.logits(x), other.logits(x))
    assert torch.allclose(model.logits(x)[3:4], model.logits(x[3:4]), atol=1e-12)
    larger = DiffusionClassifier(data, levels=9)  # whose first levels and pictures are the smaller one's
    assert torch.equal(larger.sigmas[:4].double(), model.sigmas)
    assert torch.equal(larger.noise_set[:4].double(), model.noise_set)
    assert bool(((larger.sigmas >= 0.1) & (larger.sigmas <= 1)).all())


def test_staged_prediction_finds_the_largest_logit_with_fewer_calls():
    data = mixture(classes=5, spread=0.15, seed=4)
    model = DiffusionClassifier(data, levels=16).double()
    x = data.means[:, 0].view(5, *data.input_shape).repeat(4, 1, 1, 1)
    x = x + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    full = model.logits(x)
    data.asked = 0
    labels, calls = model.predict(x)
    assert data.asked == int(calls.sum())
    assert bool((calls >= 5).all())  # one noise picture for every class, at least
    assert float(calls.double().mean()) < model.calls_per_image / 2
    assert torch.equal(labels, full.argmax(1))
    alone = [model.predict(row[None]) for row in x]
    assert torch.equal(labels, torch.cat([label for label, _ in alone]))
    assert torch.equal(calls, torch.cat([call for _, call in alone]))


def test_evidence_is_a_factor_of_the_logits():
    data, x = mixture(), pictures(5)
    whole, tenth = (DiffusionClassifier(data, levels=4, evidence=share).double() for share in (1, 0.1))
    assert torch.allclose(0.1 * whole.logits(x), tenth.logits(x), rtol=1e-12)


def test_evidence_leaves_what_classes_have_in_common_in_nats():
    data, x = mixture(), pictures(5)
    whole, tenth = (DiffusionClassifier(data, levels=4, evidence=share).double() for share in (1, 0.1))
    torch.testing.assert_close(tenth.log_joint(x).log_softmax(1), tenth.logits(x).log_softmax(1))
    torch.testing.assert_close(tenth.log_joint(x).mean(1), whole.log_joint(x).mean(1))
    torch.testing.assert_close(whole.log_joint(x), whole.logits(x))


class Shared(Mixture):
    """One call gives every class's denoised picture."""

    shares_classes = True

    def denoise_pairs(self, x, sigma, rows, labels):
        found = super().denoise_pairs(x, sigma, rows, labels)
        self.asked += len(x) - len(rows)
        return found


def test_a_denoiser_that_shares_its_classes_is_asked_once_a_noisy_picture():
    apart = mixture(classes=5, spread=0.15, seed=4)
    together = Shared(apart.means, apart.spread)
    one, other = (DiffusionClassifier(over, levels=8).double() for over in (apart, together))
    x = apart.means[:, 0].view(5, *apart.input_shape).repeat(4, 1, 1, 1)
    x = x + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(one.logits(x), other.logits(x))
    assert together.asked == 20 * other.calls_per_image == 20 * one.calls_per_image / 5
    together.asked = 0
    (labels, calls), (same, more) = other.predict(x), one.predict(x)
    assert together.asked == int(calls.sum())
    assert torch.equal(labels, same)
    assert bool((calls < more).all())
    assert float(calls.double().mean()) < other.calls_per_image / 2


def test_what_cannot_be_told_apart_takes_every_call():
    data = mixture(classes=3)
    data.means[1] = data.means[0]  # two classes that are one
    data.means[2] = data.means[0] + 50
    model = DiffusionClassifier(data, levels=6).double()
    labels, calls = model.predict(data.means[0, :1].view(1, *data.input_shape))
    assert calls.tolist() == [3 + 11 * 2]  # the third goes at once
    assert labels.tolist() == [0]


def test_it_says_what_it_costs_and_offers():
    data = mixture()
    model = DiffusionClassifier(data, levels=5).double()
    data.asked = 0
    model.logits(pictures(4))
    assert data.asked == 4 * model.calls_per_image == 4 * 30
    assert model.supports == {"logits", "log_joint", "log_prob"}
    assert model.density == "unnormalised"
    assert not model.stochastic


@pytest.mark.parametrize(
    "options",
    [{"levels": 0}, {"evidence": 0.0}, {"low": 0.001}, {"high": 1000.0}, {"low": 0.5, "high": 0.5}],
)
def test_noise_sets_that_make_no_sense(options):
    with pytest.raises(UserError):
        DiffusionClassifier(mixture(), **options)


# --- cards over a denoiser -----------------------------------------------------------------------

OPTIONS = {"num_classes": 3, "input_shape": [1, 4, 4], "widths": [4], "blocks": 1}


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A denoiser and a classifier over it, in a workspace of its own."""
    monkeypatch.chdir(tmp_path)
    write_denoiser(tmp_path / "models" / "base-tiny")
    folder = tmp_path / "models" / "over-tiny"
    folder.mkdir()
    write_card(folder, over="base-tiny")
    return folder


def write_denoiser(folder, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save_file(build("denoiser", OPTIONS, where="test").state_dict(), folder / "weights.safetensors")
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    card = {"name": folder.name, "family": "denoiser", "summary": "For tests.", "data": "digits"}
    card |= {"arch": "denoiser", "options": OPTIONS, "weights": {"sha256": digest}}
    (folder / "card.yaml").write_text(yaml.safe_dump(card))


def write_card(folder, arch="diffusion", **changes):
    card = {"name": folder.name, "family": arch, "summary": "For tests.", "data": "digits", "arch": arch}
    (folder / "card.yaml").write_text(yaml.safe_dump(card | changes))


@pytest.mark.parametrize("arch", ["diffusion", "score"])
def test_a_card_stands_on_the_denoiser_that_it_names(zoo, arch):
    write_card(zoo, arch, over="base-tiny")
    model, base = load(zoo), load(zoo.parent / "base-tiny")
    assert not model.training
    for key, value in base.state_dict().items():
        assert torch.equal(model.state_dict()[f"denoiser.{key}"], value)
    assert model.logits(torch.rand(2, 1, 4, 4)).shape == (2, 3)


def test_the_identity_covers_the_denoiser(zoo):
    before = fingerprint_model(ZooModel("over-tiny", zoo))
    write_card(zoo, over="base-tiny", summary="Other words.")
    assert fingerprint_model(ZooModel("over-tiny", zoo)) == before
    write_denoiser(zoo.parent / "base-tiny", seed=1)
    assert fingerprint_model(ZooModel("over-tiny", zoo)) != before


def test_damaged_weights_of_the_denoiser_are_found(zoo):
    path = zoo.parent / "base-tiny" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="not the weights that the card names") as error:
        load(zoo)
    assert "base-tiny" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"over": "no-such"}, "the denoiser of this card is missing"),
        ({"over": "over-tiny"}, "names a model that is not a denoiser"),
        ({}, "has no weights of its own"),
        ({"over": "base-tiny", "options": {"levls": 3}}, "does not take these options"),
        ({"over": "base-tiny", "arch": "resnet-softmax"}, "does not take these options"),
    ],
)
def test_cards_that_stand_on_nothing(zoo, changes, text):
    write_card(zoo, **changes)
    with pytest.raises(UserError, match=text) as error:
        load(zoo)
    assert "over-tiny" in str(error.value)
    assert "EDMDenoiser(" not in str(error.value)
