"""Probes of a model's gradients at each image: a readout, not an attack, of 8 calls a sample.

A failed attack says little if the gradients that it follows are zero, wrong or random. The table records
this for each sample; metrics/probe_doubts.py turns it into flags.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.attacks.losses import margin
from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.perturb import Readout
from robustgen.threat import ThreatModel

if TYPE_CHECKING:
    import pyarrow

SMALL_STEP = 8e-3
"""The L2 length of the small step: long enough that differences of float32 logits keep about two digits,
short enough that the kinks of trained networks on 3072 pixels add less than 7 % to a slope."""
ROUNDING = 16 * 2.0**-23
"""A bound on the rounding error of a float32 logit, relative to the largest; 2 units in the last place were
measured."""


class Probes(Readout):
    """Gradients and how well they predict the model, one row a sample; the large step has length
    ``threat.eps``.

    Everything is measured at the image clamped into the box by the small step, so that steps to both sides
    stay in it. Columns, where the margin is max over j != y of z_j - z_y:

    - ``ce_gradient_zero``, ``margin_gradient_zero``: the share of entries of the cross-entropy's and of the
    margin's gradient that are exactly 0; ``ce_gradient_norm``, ``margin_gradient_norm``: their L2 norms. -
    ``slope_error``: the central difference of the margin over ``SMALL_STEP`` along random signs, compared
    with the gradient: |observed - promised| / max(|gradient|, |observed|) as slopes, where |gradient| is at
    least what ``ROUNDING`` may cause. Its root mean square estimates the relative error of the gradient,
    since random signs r have E (g r)^2 = |g|^2. - ``promised``, ``observed``: the change of the margin from
    a step of eps against its gradient (its sign in Linf) to one along it, by the gradient and measured. -
    ``spread``: the largest minus the smallest logit; ``gap``: the label's lead over the other classes,
    negative where it does not lead; ``largest``: max |z|; ``repeat_difference``: max |z - z'| between two
    calls.
    """

    name = "probes"

    def __init__(self, threat: ThreatModel) -> None:
        self.threat = threat

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pyarrow.Table:
        """Probe the model at images x (batch, ...) with labels y; columns as in ``schema()``."""
        import pyarrow

        step = SMALL_STEP / x[0].numel() ** 0.5
        x = x.clamp(step, 1 - step)
        again, ce = _gradient(model, x, lambda z: functional.cross_entropy(z, y, reduction="none"))
        logits, slope = _gradient(model, x, lambda z: margin(z, y))
        signs = (2 * (draws.uniform(*x.shape[1:]) < 0.5).float() - 1).to(x)
        along = margin(_logits(model, x + step * signs), y) - margin(_logits(model, x - step * signs), y)
        length, largest = slope.flatten(1).norm(dim=1), logits.abs().amax(1)
        scale = torch.maximum(length, ROUNDING * largest / (2 * step))
        up, down = (self._step(x, way * slope) for way in (1, -1))
        columns = {
            "sample_id": torch.from_numpy(draws.sample_ids),
            "ce_gradient_zero": zeros(ce),
            "margin_gradient_zero": zeros(slope),
            "ce_gradient_norm": ce.flatten(1).norm(dim=1),
            "margin_gradient_norm": length,
            "slope_error": _relative(along / (2 * step), (slope * signs).flatten(1).sum(1), scale),
            "promised": (slope * (up - down)).flatten(1).sum(1),
            "observed": margin(_logits(model, up), y) - margin(_logits(model, down), y),
            "spread": logits.amax(1) - logits.amin(1),
            "gap": -margin(logits, y),
            "largest": largest,
            "repeat_difference": (logits - again).abs().amax(1),
        }
        return pyarrow.table({name: value.cpu().numpy() for name, value in columns.items()}, schema=schema())

    def _step(self, x: Tensor, direction: Tensor) -> Tensor:
        """A step of eps, the steepest in Linf and L2, clipped to the box."""
        if self.threat.norm == "linf":
            unit = direction.sign()
        else:
            norm = torch.linalg.vector_norm(direction, dim=(1, 2, 3), keepdim=True)
            unit = direction / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return self.threat.project(x, x + self.threat.eps * unit.nan_to_num(0, 0, 0))


def schema() -> pyarrow.Schema:
    """The columns of the table: sample_id, then floats."""
    import pyarrow

    numbers = (
        "ce_gradient_zero", "margin_gradient_zero", "ce_gradient_norm", "margin_gradient_norm",
        "slope_error", "promised", "observed", "spread", "gap", "largest", "repeat_difference",
    )  # fmt: skip
    return pyarrow.schema([("sample_id", pyarrow.int64()), *((name, pyarrow.float32()) for name in numbers)])


def _gradient(model: Classifier, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient in x of loss(logits), which maps (batch, classes) to (batch,).

    Where the logits do not depend differentiably on x, the gradient is 0.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model.logits(x)
        if not logits.requires_grad:
            return logits.float(), torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(loss(logits).sum(), x, allow_unused=True)
    return logits.detach().float(), torch.zeros_like(x) if gradient is None else gradient


@torch.no_grad()
def _logits(model: Classifier, x: Tensor) -> Tensor:
    return model.logits(x).float()


def zeros(gradient: Tensor) -> Tensor:
    """The share of entries that are exactly 0, (batch,)."""
    return (gradient == 0).flatten(1).float().mean(1)


def _relative(observed: Tensor, promised: Tensor, scale: Tensor) -> Tensor:
    """|observed - promised| as a share of the larger of |observed| and ``scale``; 0 where all are 0."""
    error = (observed - promised).abs()
    return torch.where(error == 0, 0, error / torch.maximum(observed.abs(), scale))
