from __future__ import annotations

import pandas as pd
import pytest
import torch
from linear_oracle import model_and_pictures
from torch import Tensor, nn

from robustgen.attacks.losses import margin
from robustgen.attacks.probes import Probes, schema
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

LINF = ThreatModel("linf", 0.1)


def read(model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel = LINF) -> pd.DataFrame:
    table = Probes(threat)(model, x, y, Draws(0, "probes", torch.arange(len(x))))
    assert table.schema == schema()
    return table.to_pandas()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_on_a_linear_model_of_two_classes_all_is_known(norm: str) -> None:
    weights = torch.randn(64, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([weights, torch.zeros(64)]))  # type: ignore[union-attr, operator]
    x = 0.3 + 0.4 * torch.rand(16, 1, 8, 8)  # away from the box
    y = torch.zeros(16, dtype=torch.long)
    table = read(PlainClassifier(net, 2, (1, 8, 8)), x, y, ThreatModel(norm, 0.1))  # type: ignore[arg-type]
    logit = (x.flatten(1) * weights).sum(1)
    length = float(weights.norm())
    expected = {
        "gap": logit,
        "spread": logit.abs(),
        "largest": logit.abs(),
        "margin_gradient_norm": torch.full((16,), length),
        # d/dx of log(1 + exp(-z)) = -w sigmoid(-z)
        "ce_gradient_norm": length * torch.sigmoid(-logit),
    }
    if norm != "l1":  # there and back, by the dual norm of the gradient
        dual = float(weights.abs().sum()) if norm == "linf" else length
        expected |= {name: torch.full((16,), 2 * 0.1 * dual) for name in ("promised", "observed")}
    for name, values in expected.items():
        assert torch.allclose(torch.tensor(table[name].values), values, rtol=1e-3, atol=1e-5), name
    assert (table["observed"] > 0).all()
    assert table["slope_error"].max() < 1e-3
    for name in ("ce_gradient_zero", "margin_gradient_zero", "repeat_difference"):
        assert (table[name] == 0).all(), name


class Backward(torch.autograd.Function):
    """The identity, its gradient with an error of the size of a share of it."""

    @staticmethod
    def forward(ctx, x: Tensor, share: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.share = share
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        noise = torch.randn(g.shape, generator=torch.Generator().manual_seed(1))
        size = g.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        return g + ctx.share * size.view(-1, 1, 1, 1) * noise, None


class Off(PlainClassifier):
    share = 0.0

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return super().logits(Backward.apply(x, self.share))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_mean_square_of_the_slopes_error_is_that_of_the_gradient(share: float) -> None:
    net, _, x, y = model_and_pictures(10)
    model = Off(net, 10, tuple(x.shape[1:]))
    model.share = share
    x = x.repeat(8, 1, 1, 1)
    table = read(model, x, y.repeat(8))
    g = torch.autograd.functional.jacobian(lambda v: margin(net(v), y.repeat(8)).sum(), x)
    seen = torch.autograd.functional.jacobian(lambda v: margin(model.logits(v), y.repeat(8)).sum(), x)
    true = ((seen - g).flatten(1).norm(dim=1) / seen.flatten(1).norm(dim=1)).square().mean().sqrt()
    measured = table["slope_error"].pow(2).mean() ** 0.5
    # slopes larger than the gradient's length are divided by themselves, which takes a little off
    assert 0.6 * float(true) < measured < 1.1 * float(true)


def test_a_zero_gradient_is_counted_and_its_slope_is_all_error(trained: FixedBatch, digits: Dataset) -> None:
    class Detached(PlainClassifier):
        def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
            return super().logits(x.detach())

    part = digits.slice(0, 16)
    table = read(Detached(trained, 10, (1, 8, 8)), part.images, part.labels)
    for name in ("ce_gradient_zero", "margin_gradient_zero"):
        assert (table[name] == 1).all(), name
    assert (table["slope_error"] > 0.99).mean() > 0.8  # but where the slope is within the rounding
    assert (table["observed"] == 0).all()


def test_half_of_the_pixels_are_dead(trained: FixedBatch, digits: Dataset) -> None:
    class Half(PlainClassifier):
        def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
            return super().logits(torch.cat([x[:, :, :4], torch.zeros_like(x[:, :, 4:])], 2))

    part = digits.slice(0, 16)
    table = read(Half(trained, 10, (1, 8, 8)), part.images, part.labels)
    assert (table["ce_gradient_zero"] == 0.5).all()
    assert (table["margin_gradient_zero"] == 0.5).all()
    assert table["slope_error"].median() < 1e-3


def test_two_calls_that_differ_are_seen(trained: FixedBatch, digits: Dataset) -> None:
    class Random(PlainClassifier):
        def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
            logits = super().logits(x)
            return logits + 0.1 * torch.rand(logits.shape)

    part = digits.slice(0, 16)
    table = read(Random(trained, 10, (1, 8, 8)), part.images, part.labels)
    assert ((table["repeat_difference"] > 0) & (table["repeat_difference"] < 0.1)).all()


def test_it_costs_less_than_ten_calls_and_a_rows_numbers_are_its_own(
    trained: FixedBatch, digits: Dataset
) -> None:
    trained.begin(40)
    part = digits.slice(0, 40)
    draws = Draws(0, "probes", part.sample_ids)
    whole = Probes(LINF)(trained, part.images, part.labels, draws)
    assert (trained.forwards + trained.backwards <= 9).all()
    trained.begin(7)
    some = digits.slice(20, 27)
    few = Probes(LINF)(trained, some.images, some.labels, Draws(0, "probes", some.sample_ids))
    assert whole.slice(20, 7).equals(few)


def test_no_step_leaves_the_box(digits: Dataset) -> None:
    class Strict(PlainClassifier):
        def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
            assert bool(((x >= 0) & (x <= 1)).all())
            return super().logits(x)

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    read(Strict(net, 10, (1, 8, 8)), digits.images, digits.labels, ThreatModel("linf", 0.5))
