"""Masks that change no decision are named by the model's gradients; honest models are not accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from doubt_fakes import rows, run
from torch import Tensor
from torch.nn import functional

from robustgen import data, load_model
from robustgen.attacks.probes import Probes
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.draws import Draws
from robustgen.metrics.doubts import find_doubts
from robustgen.metrics.probe_doubts import probe_doubts
from robustgen.metrics.rows import Rows
from robustgen.threat import ThreatModel

HONEST = ("cdn-digits", "jem-digits", "pgd-at-digits", "softmax-digits", "softmax-noise-digits")
THREATS = (ThreatModel("linf", 0.15), ThreatModel("l2", 0.6))
PROBES = {"name": "probes", "kind": "probes"}
CLEAN = {"name": "clean", "kind": "clean"}


class Backward(torch.autograd.Function):
    """forward(x), with a gradient as if it were the identity followed by ``backward`` of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Callable, backward: Callable) -> Tensor:
        ctx.change = backward
        return forward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.change(g), None, None


def same(x: Tensor) -> Tensor:
    return x


class Masked(Classifier):
    def __init__(self, model: Classifier, mask: Callable = same, backward: Callable = same) -> None:
        super().__init__()
        self.model, self.mask, self.change = model, mask, backward
        self.num_classes, self.input_shape = model.num_classes, model.input_shape

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.mask(self.model.logits(Backward.apply(x, same, self.change)))


def quantised(z: Tensor) -> Tensor:
    """Whole numbers; a tie goes to the class that was first before."""
    return z.round() + 0.001 * functional.one_hot(z.argmax(1), z.shape[1])


MASKS: dict[str, tuple[dict[str, Callable], set[str]]] = {
    "rounded backward": ({"backward": torch.round}, {"inconsistent_gradients"}),
    "turned around": ({"backward": torch.neg}, {"inconsistent_gradients"}),
    "no gradient": ({"backward": torch.zeros_like}, {"zero_gradients"}),
    "infinite": ({"backward": lambda g: g / 0}, {"exploding_gradients"}),
    "logits x 1e4": ({"mask": lambda z: 1e4 * z}, {"scaled_logits", "zero_gradients"}),
    "quantised": ({"mask": quantised}, {"quantised_logits", "zero_gradients"}),
    "quantised, straight through": (
        {"mask": lambda z: Backward.apply(z, quantised, same)},
        {"quantised_logits", "inconsistent_gradients"},
    ),
    "random": ({"mask": lambda z: z + 0.02 * torch.randn_like(z)}, {"random_forward"}),
}


def digits() -> data.Dataset:
    return data.load("digits").slice(0, 64)


def judge(model: Classifier, threat: ThreatModel = THREATS[0]) -> tuple[set[str], Rows]:
    """The flags on a model's clean rows and probes, n = 64, and the rows."""
    part = digits()
    served = FixedBatch(model.eval().requires_grad_(False), 64)
    with torch.no_grad():
        logits = served.logits(part.images)
    labels = part.labels
    right = (logits.argmax(1) == labels).tolist()
    clean = rows(right, logits=logits.numpy(), label=labels.tolist())
    table = Probes(threat)(served, part.images, labels, Draws(0, "probes", part.sample_ids)).to_pandas()
    flags = [
        *find_doubts(run((CLEAN, clean), classes=10)),
        *probe_doubts(run((PROBES, clean), classes=10, table=table)),
    ]
    return {flag.flag for flag in flags if flag.severity != "info"} - {"no_calibration"}, clean


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_is_not_accused(name: str, threat: ThreatModel) -> None:
    assert judge(load_model(name), threat)[0] == set()


@pytest.mark.parametrize("name", ["pgd-at-digits", "softmax-noise-digits"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_that_changes_no_decision_is_named(name: str, mask: str) -> None:
    model = load_model(name)
    changes, names = MASKS[mask]
    found, clean = judge(Masked(model, **changes))
    assert names <= found
    part = digits()
    plain = (model.logits(part.images).argmax(1) == part.labels).numpy()
    assert abs(plain.mean() - clean.correct.mean()) < 0.005


# --- tables made up ----------------------------------------------------------------------------------

GOOD = {
    "ce_gradient_zero": 0.0, "margin_gradient_zero": 0.0, "ce_gradient_norm": 1.0,
    "margin_gradient_norm": 1.0, "slope_error": 1e-4, "promised": 1.0, "observed": 1.0, "spread": 10.0,
    "gap": 5.0, "largest": 10.0, "repeat_difference": 0.0,
}  # fmt: skip


def flags(bad: dict[str, float], k: int, n: int = 100, right: int = 100) -> dict[str, str]:
    """Flags of a table of n good samples, the first k of which have these bad values."""
    table = pd.DataFrame([{"sample_id": i} | GOOD | (bad if i < k else {}) for i in range(n)])
    probed = rows([True] * right + [False] * (n - right))
    found = run((PROBES, probed), table=table.astype(np.float32))
    return {f.flag: f.message for f in probe_doubts(found)}


@pytest.mark.parametrize(
    ("bad", "k", "flag", "says"),
    [
        ({"ce_gradient_zero": 1.0}, 2, "zero_gradients", "cross-entropy"),
        (
            {"ce_gradient_zero": 1.0, "margin_gradient_zero": 1.0},
            2,
            "zero_gradients",
            "no gradient attack can move",
        ),
        ({"gap": 81.0}, 2, "scaled_logits", "softmax is saturated"),
        ({"promised": 10001.0}, 2, "exploding_gradients", "1000 times their spread"),
        ({"slope_error": 0.11}, 6, "inconsistent_gradients", "differs from finite differences"),
        ({"slope_error": np.nan}, 6, "inconsistent_gradients", "differs from finite differences"),
        ({"observed": -1.0}, 26, "inconsistent_gradients", "shattered"),
    ],
)
def test_each_flag_has_its_bound(bad: dict[str, float], k: int, flag: str, says: str) -> None:
    found = flags(bad, k)
    assert set(found) == {flag}
    assert says in found[flag]
    assert flags(bad, k - 1) == {}


def test_only_samples_that_are_right_count() -> None:
    table = flags({"ce_gradient_zero": 1.0}, 50, right=100)
    assert "50 of 100" in table["zero_gradients"]
    assert "50 of 60" in flags({"ce_gradient_zero": 1.0}, 50, right=60)["zero_gradients"]
    assert flags({"ce_gradient_zero": 1.0}, 50, right=0) == {}


def test_one_gradient_that_is_no_number_is_enough() -> None:
    assert "exploding_gradients" in flags({"ce_gradient_norm": np.inf}, 1)
    assert "exploding_gradients" in flags({"margin_gradient_norm": np.nan}, 1)


def test_a_random_model_has_no_slope_to_be_judged() -> None:
    assert set(flags({"repeat_difference": 0.2, "slope_error": 1.0}, 100)) == {"random_forward"}
