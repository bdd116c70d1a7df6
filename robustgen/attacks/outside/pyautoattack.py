"""The AutoAttack cascade (Croce and Hein 2020, arXiv:2003.01690), from the parts of pyautoattack.

pyautoattack 0.2.0 is upstream's code of 2023 under another name. Its parts draw from torch's global
generator, which they seed at every call, so they run in a fork of it, one batch a chunk, and are
reproducible by chunk, not by sample. In protocols they are pyautoattack:standard, and its parts alone such
as pyautoattack:apgd-ce.

The reference's semantics are kept, weak spot included: APGD-CE climbs the cross-entropy of the raw logits,
whose float32 gradient is exactly 0 where the label leads by more than about 104 nats. Joint models reach
such leads; the other three parts are not affected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from pydantic import Field
from torch import Tensor

from robustgen.attacks.autoattack import STANDARD, QueryBudget, TargetedBudget, count_targets
from robustgen.attacks.options import AttackOptions
from robustgen.attacks.progress import Progress
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import serving
from robustgen.draws import Draws, forked_generators
from robustgen.errors import UnsupportedError
from robustgen.perturb import Attack, Perturbed
from robustgen.registry import slug
from robustgen.threat import ThreatModel

# Upstream's logger warns of zero gradients, for example, without saying of which samples.
_SILENT = logging.Logger("pyautoattack", level=logging.CRITICAL)


class ReferenceBudget(AttackOptions):
    """The budget of the standard version; fields as in ``autoattack.AutoAttackBudget``."""

    n_iter: int = Field(default=100, gt=0)
    n_target_classes: int | None = Field(default=None, gt=0)
    n_queries: int = Field(default=5000, gt=0)


class ReferenceUntargetedBudget(AttackOptions):
    """The budget of APGD-CE."""

    n_iter: int = Field(default=100, gt=0)


VERSIONS: dict[str, tuple[tuple[str, ...], type[AttackOptions]]] = {
    "standard": (STANDARD, ReferenceBudget),
    "apgd-ce": (("apgd-ce",), ReferenceUntargetedBudget),
    "apgd-t": (("apgd-t",), TargetedBudget),
    "fab-t": (("fab-t",), TargetedBudget),
    "square": (("square",), QueryBudget),
}
"""The stages and the options of the standard version and of each part alone."""


class ReferenceCascade(Attack):
    """A version of VERSIONS: attacks in order, each from the clean images of those samples that are still
    classified right.

    ``broken_by`` names the stage that broke a sample. The clean image is returned where no stage succeeded,
    and where it was misclassified already. Of a stochastic model all samples are attacked, and the image
    that is most wrong by the mean over draws is kept.
    """

    reference = "Croce and Hein 2020, arXiv:2003.01690; pyautoattack 0.2.0"
    seeded_by_chunk = True

    def __init__(self, version: str, threat: ThreatModel, /, **options: Any) -> None:
        super().__init__(threat)
        self.stage_names, takes = VERSIONS[version]
        title = f"pyautoattack:{version}"
        given = takes.validated(options, title)
        self.name = given.attack_name(slug(title))
        self.budget = ReferenceBudget(**given.model_dump())

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        self._check(model, x)
        seed = draws.integer()
        progress = Progress(model, x, y)
        for stage in self.stage_names:
            rows = progress.remaining()
            if len(rows) == 0:
                break
            # Upstream seeds every part with the same number, and so do we.
            with forked_generators(seed, x.device):
                with serving(model, rows):
                    attack = PARTS[stage](model, self.threat, self.budget, seed)
                    x_adv = attack(x[rows].clone(), y[rows].clone()).detach()
                progress.judge(rows, x_adv, stage)
        return Perturbed(progress.images, progress.broken_by)

    def _check(self, model: Classifier, x: Tensor) -> None:
        # Square's first stripes in L2 and L1 are a fifth of an image's side wide.
        if "square" in self.stage_names and self.threat.norm != "linf" and min(x.shape[2:]) < 5:
            raise UnsupportedError(
                f"Square in {self.threat.norm} needs images of at least 5x5 pixels",
                where=f"the attack {self.name!r}",
                got="x".join(str(side) for side in x.shape[2:]),
                remedy="attack in linf, or name apgd-ce, apgd-t and fab-t one by one",
            )


# --- the parts, with the settings of AutoAttack's standard version ------------------------------------

Part = Callable[[Tensor, Tensor], Tensor]
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def _apgd_ce(model: Classifier, threat: ThreatModel, budget: ReferenceBudget, seed: int) -> Part:
    l1 = threat.norm == "l1"
    attack = APGDAttack(
        model, n_iter=budget.n_iter, norm=NORMS[threat.norm], n_restarts=5 if l1 else 1, eps=threat.eps,
        seed=seed, loss="ce", use_largereps=l1, logger=_SILENT,
    )  # fmt: skip
    return attack.perturb


class _MarginTargeted(APGDAttack_targeted):
    """APGD-T for fewer than 4 classes, which lack the 3rd and 4th logit of DLR's denominator: climbs z_t -
    z_y, its numerator (see ``autoattack.dlr_or_margin``)."""

    def dlr_loss_targeted(self, x: Tensor, y: Tensor) -> Tensor:
        u = torch.arange(len(x))
        return x[u, self.y_target] - x[u, y]


def _apgd_t(model: Classifier, threat: ThreatModel, budget: ReferenceBudget, seed: int) -> Part:
    l1 = threat.norm == "l1"
    kind = _MarginTargeted if model.num_classes < 4 else APGDAttack_targeted
    attack = kind(
        model, n_iter=budget.n_iter, norm=NORMS[threat.norm], n_restarts=1, eps=threat.eps, seed=seed,
        use_largereps=l1, logger=_SILENT,
        n_target_classes=count_targets(budget.n_target_classes, model.num_classes, 5 if l1 else 9),
    )  # fmt: skip
    return attack.perturb


def _fab_t(model: Classifier, threat: ThreatModel, budget: ReferenceBudget, seed: int) -> Part:
    attack = FABAttack_PT(
        model, n_iter=budget.n_iter, norm=NORMS[threat.norm], n_restarts=1, eps=threat.eps, seed=seed,
        targeted=True, n_target_classes=count_targets(budget.n_target_classes, model.num_classes, 9),
    )  # fmt: skip
    return attack.perturb


class _Square(SquareAttack):
    """Square with a fix for ties: upstream takes a margin of 0 for a success in its loop but not before it,
    and then fails on an empty batch (with a model whose logits are all equal)."""

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        margin, loss = super().margin_and_loss(x, y)
        return torch.where(margin == 0, -1e-12, margin), loss


def _square(model: Classifier, threat: ThreatModel, budget: ReferenceBudget, seed: int) -> Part:
    attack = _Square(
        model, n_queries=budget.n_queries, norm=NORMS[threat.norm], n_restarts=1, eps=threat.eps, seed=seed,
        p_init=0.8, resc_schedule=False,
    )  # fmt: skip
    return attack.perturb


PARTS: dict[str, Callable[[Classifier, ThreatModel, ReferenceBudget, int], Part]] = {
    "apgd-ce": _apgd_ce,
    "apgd-t": _apgd_t,
    "fab-t": _fab_t,
    "square": _square,
}


def build(attack: str, threat: ThreatModel, options: Mapping[str, Any]) -> ReferenceCascade:
    """The standard version, or one of its parts alone."""
    return ReferenceCascade(attack, threat, **options)
