"""The objectives on noisy pictures: their values where they are known, and what they can teach."""

import math

import pytest
import torch

from robustgen import data
from robustgen.classifiers.cdn import CDN, NoisySoftmax
from robustgen.classifiers.denoisers import EDMDenoiser, SharedDenoiser
from robustgen.classifiers.egc import EGC
from robustgen.classifiers.softmax import Softmax
from robustgen.errors import UserError
from robustgen.training.augment import augment
from robustgen.training.denoising import Denoising, draw_levels, level_weight
from robustgen.training.recipe import Augment, DenoisingSpec
from robustgen.types import ConditionalNoise

SHAPE = (1, 8, 8)
TINY = {"widths": (6, 8), "blocks": 1}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "calibration")


def objective(digits, **fields):
    return Denoising(DenoisingSpec(kind="denoising", **fields), digits)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def without_network(model):
    """Only what is not trained stays: the scalar Wiener filter, and equal classes."""
    heads = model.to_maps if isinstance(model, EGC) else model.backbone.to_score
    for weight in [*heads.parameters(), *model.backbone.head.parameters()]:
        torch.nn.init.zeros_(weight)
    return model


def test_levels_cover_the_range_and_stress_the_last_factor_of_ten():
    levels = draw_levels(20_000, ConditionalNoise(0.01, 1.0), 0.5, generator())
    assert 0.01 <= float(levels.min()) < 0.0101
    assert 0.99 < float(levels.max()) <= 1.0 + 1e-6
    # half over both decades, half over the last: three quarters lie in it, uniformly in log sigma
    assert float((levels > 0.1).float().mean()) == pytest.approx(0.75, abs=0.01)
    assert float((levels > 10**-0.5).float().mean()) == pytest.approx(0.375, abs=0.01)
    plain = draw_levels(20_000, ConditionalNoise(0.01, 1.0), 0.0, generator())
    assert float((plain > 0.1).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_losses_of_an_untrained_model_are_those_of_the_scalar_wiener_filter(digits):
    """lambda E|sigma grad + eps|^2 / d: with gain g = s_d^2 / (s_d^2 + sigma^2), the filter's error is

    g sigma^2 a pixel, so that the loss is g sigma^2 / sigma^2 * lambda = g (1 + sigma^2 / s_d^2) = 1.
    """
    x, y = digits.images.repeat(20, 1, 1, 1), digits.labels.repeat(20)
    for make in (CDN, EGC):
        loss, parts = objective(digits, weight=3.0).loss(
            without_network(make(10, SHAPE, **TINY)), x, y, generator()
        )
        assert parts["matching"] == pytest.approx(1.0, abs=0.02)
        assert parts["cross_entropy"] == pytest.approx(math.log(10), abs=1e-4)
        assert float(loss.detach()) == pytest.approx(parts["cross_entropy"] + 3 * parts["matching"], rel=1e-5)
    loss, _ = objective(digits).loss(EDMDenoiser(10, SHAPE, **TINY), x, y, generator())
    assert float(loss.detach()) == pytest.approx(1.0, abs=0.02)
    assert torch.allclose(level_weight(torch.tensor([0.0, 0.3]), torch.tensor(0.3)), torch.tensor([1.0, 2.0]))


def test_the_scale_is_measured_at_the_first_step_only(digits):
    x, y = digits.images[:4], digits.labels[:4]
    for model in (make(10, SHAPE, **TINY) for make in (CDN, EGC, NoisySoftmax, EDMDenoiser)):
        rule = objective(digits)
        rule.loss(model, x, y, generator())
        assert torch.equal(model.mean, digits.images.mean(0))
        model.mean.zero_()
        rule.progress = 0.1
        rule.loss(model, x, y, generator())
        assert not model.mean.any()


def test_the_control_sees_the_noise_of_the_joint_model_and_only_the_cross_entropy(digits):
    x, y = digits.images, digits.labels
    control, joint = NoisySoftmax(10, SHAPE, **TINY), CDN(10, SHAPE, **TINY)
    joint.load_state_dict(control.state_dict(), strict=False)
    loss, _ = objective(digits).loss(control, x, y, generator())
    _, parts = objective(digits).loss(joint, x, y, generator())
    assert parts["cross_entropy"] == pytest.approx(float(loss.detach()), rel=1e-4)
    alone, parts = objective(digits, weight=0).loss(joint, x, y, generator())
    assert float(alone.detach()) == pytest.approx(float(loss.detach()), rel=1e-4)
    assert "matching" not in parts


@pytest.mark.parametrize("make", [CDN, EGC])
def test_score_matching_reaches_every_weight_and_draws_only_from_the_generator(digits, make):
    model = make(10, SHAPE, **TINY)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(losses))
        losses.append(objective(digits).loss(model, digits.images, digits.labels, generator(seed))[0])
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    losses[0].backward()
    # all but the offset of log p, which no gradient sees, have a gradient
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_dropped_labels_train_the_null_label(digits):
    model = EDMDenoiser(10, SHAPE, **TINY)
    torch.nn.init.normal_(model.net.out.weight)
    for block in (m for m in model.modules() if hasattr(m, "modulation")):
        torch.nn.init.normal_(block.modulation.weight)
    loss, _ = objective(digits, dropped=0.0).loss(model, digits.images, digits.labels, generator())
    loss.backward()
    assert not model.net.label.weight.grad[10].any()
    loss, _ = objective(digits, dropped=0.5).loss(model, digits.images, digits.labels, generator())
    loss.backward()
    assert model.net.label.weight.grad[10].any()


class Known(SharedDenoiser):
    """Whatever it sees, its guess is a picture of the label's own grey."""

    def denoise_each(self, x, sigma):
        greys = 0.05 * torch.arange(self.num_classes + 1.0)
        return greys.view(1, -1, 1, 1, 1).expand(len(x), -1, *x.shape[1:])


def test_contrast_is_the_cross_entropy_of_the_labels_by_the_errors_under_each(digits):
    model = Known(10, SHAPE, **TINY)
    x, y = digits.images, digits.labels
    loss, parts = objective(digits, dropped=0.4, contrast=0.5, strong=0.0).loss(model, x, y, generator())
    draws = generator()  # the same, in the same order
    sigma = draw_levels(len(x), model.levels, 0.0, draws)
    torch.randn(x.shape, generator=draws)
    labels = torch.where(torch.rand(len(x), generator=draws) < 0.4, 10, y)
    greys = 0.05 * torch.arange(11.0)
    errors = ((x.flatten(1)[:, None] - greys[:, None]).square().sum(2) / sigma[:, None] ** 2).double()
    evidence = -0.1 * errors[:, :10]
    log_p = evidence - evidence.logsumexp(1, keepdim=True)
    assert parts["cross_entropy"] == pytest.approx(-float(log_p[torch.arange(len(y)), y].mean()), rel=1e-4)
    assert parts["accuracy"] == pytest.approx(float((errors[:, :10].argmin(1) == y).float().mean()))
    weights = level_weight(sigma, model.sigma_data)
    matching = (weights * errors[torch.arange(len(y)), labels]).mean() / 64
    assert parts["matching"] == pytest.approx(float(matching), rel=1e-4)
    assert float(loss) == pytest.approx(parts["matching"] + 0.5 * parts["cross_entropy"], rel=1e-5)
    plain, none = objective(digits, dropped=0.4, strong=0.0).loss(model, x, y, generator())
    assert float(plain) == pytest.approx(parts["matching"], rel=1e-5)
    assert none == {}


def test_contrast_is_a_guess_before_training_and_teaches_what_denoising_alone_is_late_to_teach(digits):
    ends = []
    for weight in (1.0, 1e-9):
        torch.manual_seed(0)
        model, rule = SharedDenoiser(10, SHAPE, **TINY), objective(digits, strong=0.0, contrast=weight)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.005)
        for step in range(41):
            rule.progress = step / 100
            loss, parts = rule.loss(model, digits.images, digits.labels, generator(step))
            if step == 0:
                assert parts["cross_entropy"] == pytest.approx(math.log(10), abs=1e-4)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ends.append(parts)
    assert ends[0]["cross_entropy"] < ends[1]["cross_entropy"] - 0.3
    assert ends[0]["accuracy"] > ends[1]["accuracy"] + 0.1


def test_contrast_of_a_network_of_one_label_at_a_time_is_refused(digits):
    with pytest.raises(UserError, match="under every label at once"):
        objective(digits, contrast=1.0).loss(
            EDMDenoiser(10, SHAPE, **TINY), digits.images, digits.labels, generator()
        )


def test_the_label_is_for_the_energy_and_not_for_the_class(digits):
    """EGC is trained to classify without the label; with it, the score is that of the label's class."""
    model = EGC(10, SHAPE, **TINY)
    for block in (m for m in model.modules() if hasattr(m, "modulation")):
        torch.nn.init.normal_(block.modulation.weight, std=0.1)
    x, y = digits.images, digits.labels
    _, before = objective(digits).loss(model, x, y, generator())
    with torch.no_grad():
        model.label.weight[:10] += 1
    loss, after = objective(digits).loss(model, x, y, generator())
    assert after["cross_entropy"] == before["cross_entropy"]
    assert after["matching"] != before["matching"]
    loss.backward()
    assert model.label.weight.grad[:10].any()
    assert not model.label.weight.grad[10].any()  # no label adds nothing, and stays so
    for model_grad in (model.backbone.head.weight.grad, model.to_maps[0].weight.grad):
        assert model_grad.any()


@pytest.mark.parametrize("make", [CDN, EGC, EDMDenoiser])
def test_a_short_training_denoises_better_than_it_began(digits, make):
    torch.manual_seed(0)
    model, rule = make(10, SHAPE, **TINY), objective(digits, clean=0.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    noisy = digits.images + 0.3 * torch.randn(digits.images.shape, generator=generator())

    def error():
        with torch.no_grad():
            return float((model.denoise(noisy, 0.3) - digits.images).square().mean())

    rule.loss(model, digits.images[:2], digits.labels[:2], generator())  # measures the scale
    before = error()
    for step in range(30):
        rule.progress = (step + 1) / 100
        rows = torch.arange(32) + 5 * step
        loss, _ = rule.loss(model, digits.images[rows], digits.labels[rows], generator(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert error() < 0.96 * before


def test_a_model_without_noise_levels_is_refused(digits):
    model = Softmax(10, SHAPE, width=4, blocks=(1,))
    with pytest.raises(UserError, match="noisy pictures"):
        objective(digits).loss(model, digits.images, digits.labels, generator())


def test_augmentation_can_leave_a_share_of_the_pictures_alone(digits):
    x = digits.images.repeat(5, 1, 1, 1)
    some = augment(x, Augment(shift=1, share=0.5), generator())
    assert torch.equal(augment(x, Augment(shift=1, share=0.0), generator()), x)
    changed = float((some != x).flatten(1).any(1).float().mean())
    assert changed == pytest.approx(0.5 * 8 / 9, abs=0.05)  # one shift in nine is by nothing
