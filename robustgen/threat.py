"""Threat models: the perturbations that an attacker may use, a norm ball within the pixel box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from robustgen.errors import UserError
from robustgen.types import Norm

if TYPE_CHECKING:
    from torch import Tensor

SLACK = 1e-6
"""Excess over eps or the box, in pixel units, that always counts as rounding."""
ROUNDING = 2.0**-24
"""Twice the largest error of rounding a value in [0, 1] to float32."""


@dataclass(frozen=True)
class ThreatModel:
    """Perturbations of norm at most ``eps`` (in pixel units) that keep the image in ``box``.

    >>> ThreatModel("linf", 8 / 255).slug
    'linf-8-255'
    >>> ThreatModel("l2", 0.5).slug
    'l2-0.5'
    """

    norm: Norm
    eps: float
    box: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise UserError("unknown norm", expected=", ".join(get_args(Norm)), got=self.norm)
        if not self.eps > 0:
            raise UserError(
                "eps must be positive",
                expected="a number above 0 in pixel units, such as 8/255",
                got=self.eps,
            )

    @property
    def slug(self) -> str:
        """The name of this threat in folders and tables; multiples of 1/255 are written as such."""
        levels = self.eps * 255
        if self.eps < 0.2 and round(levels) and abs(levels - round(levels)) < 1e-6:
            return f"{self.norm}-{round(levels)}-255"
        return f"{self.norm}-{self.eps:.6g}"

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """The norm of the perturbation, (batch,), computed in float64."""
        delta = (x_adv.double() - x.double()).flatten(1)
        if self.norm == "linf":
            return delta.abs().amax(1)
        return delta.norm(p=2 if self.norm == "l2" else 1, dim=1)

    def contains(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Whether each x_adv (batch, ...) lies in the box and in the ball around its x, up to rounding,
        (batch,)."""
        low, high = self.box
        flat = x_adv.flatten(1)
        in_box = (flat >= low - SLACK).all(1) & (flat <= high + SLACK).all(1)
        return in_box & (self.distance(x, x_adv) <= self.eps + self.slack(flat.shape[1]))

    def slack(self, values: int) -> float:
        """How much rounding may add to the norm of a perturbation of so many values: the excess of a
        float32 image on the surface of the ball if every value were rounded outwards."""
        power = {"linf": 0.0, "l2": 0.5, "l1": 1.0}[self.norm]
        return max(SLACK, ROUNDING * values**power)

    def project(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """The nearest point of the ball, then clipped to the box; as x is in the box, clipping only shrinks
        it."""
        delta = (x_adv - x).flatten(1)
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.norm == "l2":
            norm = delta.norm(dim=1, keepdim=True).clamp_min(1e-12)
            delta = delta * (self.eps / norm).clamp_max(1.0)
        else:
            delta = _project_l1(delta, self.eps)
        return (x + delta.view_as(x)).clamp(*self.box)


def worst_name(norm: Norm, eps: float) -> str:
    """The evaluation name of the worst case over all attacks within a threat model.

    >>> worst_name("linf", 0.15)
    'worst-linf-0.15'
    """
    return f"worst-{ThreatModel(norm, eps).slug}"


def _project_l1(delta: Tensor, eps: float) -> Tensor:
    """Euclidean projection of each row on the L1 ball (Duchi et al. 2008, figure 1)."""
    import torch

    u = delta.abs().sort(dim=1, descending=True).values
    excess = (u.cumsum(1) - eps) / torch.arange(1, u.shape[1] + 1, device=u.device, dtype=u.dtype)
    rho = (u > excess).sum(1, keepdim=True).clamp_min(1)
    theta = excess.gather(1, rho - 1).clamp_min(0.0)
    return delta.sign() * (delta.abs() - theta).clamp_min(0.0)
