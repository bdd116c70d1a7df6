"""Accuracy against eps: falling, in the balls, and exact where the truth is known."""

import pytest
import torch
from linear_oracle import DUAL, model_and_pictures

from robustgen.attacks.autoattack import ApgdT
from robustgen.attacks.curve import robust_curve
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.threat import ThreatModel


def test_the_curve_falls_and_its_pictures_lie_in_their_balls(trained: FixedBatch, digits: Dataset) -> None:
    x, y = digits.images[:32], digits.labels[:32]
    trained.begin(32)
    epsilons = [0.2, 0.05, 0.1]
    curve = robust_curve(
        ApgdT, trained, x, y, norm="linf", epsilons=epsilons, draws=Draws(0, "curve", digits.sample_ids[:32])
    )
    assert curve.eps.tolist() == pytest.approx(sorted(epsilons))
    assert (curve.robust[1:] <= curve.robust[:-1]).all()
    assert 0 < curve.accuracy[0] <= 1
    assert curve.accuracy[-1] < curve.accuracy[0]
    for eps, images, robust in zip(curve.eps.tolist(), curve.images, curve.robust, strict=True):
        assert ThreatModel("linf", eps).contains(x, images).all()
        assert ((trained.logits(images).argmax(1) == y) == robust).all()


def test_on_a_linear_model_the_curve_is_the_exact_one() -> None:
    net, model, x, y = model_and_pictures(10)
    exact = net.distances(x, y, DUAL["linf"])
    radii = [float(exact.quantile(q)) * 1.02 for q in (0.2, 0.5, 0.8)]
    model.begin(len(x))
    curve = robust_curve(
        ApgdT, model, x, y, norm="linf", epsilons=radii, draws=Draws(0, "curve", torch.arange(len(x)))
    )
    for eps, accuracy in zip(radii, curve.accuracy.tolist(), strict=True):
        assert accuracy == pytest.approx(float((exact > eps).double().mean()), abs=1e-9)


def test_no_radii_are_an_error(trained: FixedBatch, digits: Dataset) -> None:
    with pytest.raises(UserError, match="radii"):
        robust_curve(
            ApgdT, trained, digits.images[:2], digits.labels[:2], norm="linf", epsilons=[],
            draws=Draws(0, "curve", digits.sample_ids[:2]),
        )  # fmt: skip
