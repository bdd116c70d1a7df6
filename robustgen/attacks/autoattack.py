"""AutoAttack (Croce and Hein 2020, arXiv:2003.01690): its parts, and its versions as cascades.

Parts, order and budgets are those of the reference's code of 2023. docs/attacks.md says what is the same,
and what is done differently for speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from robustgen.attacks.apgd import apgd
from robustgen.attacks.cascade import Cascade, Stage
from robustgen.attacks.fab import LeanFAB, LeanUntargetedFAB
from robustgen.attacks.losses import CLASSES_NEEDED
from robustgen.attacks.options import AttackOptions
from robustgen.attacks.screen import build_screened_square
from robustgen.attacks.search import Search
from robustgen.attacks.square import square
from robustgen.attacks.victim import EOT
from robustgen.classifiers.base import Classifier
from robustgen.threat import ThreatModel

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
PLUS = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
RAND = ("apgd-ce", "apgd-dlr")
RAND_DRAWS = 20
PLUS_BUDGET = {"restarts": 5, "n_target_classes": 9}


class AutoAttackBudget(AttackOptions):
    """The budget of the standard version.

    ``n_iter``: steps of APGD and FAB; ``n_target_classes``: classes that APGD-T and FAB-T aim at (None: 9, or
    5 for APGD-T in L1; at most all others); ``restarts`` of the untargeted parts (None: 1, in L1 5);
    ``n_queries`` of Square; ``thorough``: whether every job runs to its end (see ``Cascade``).
    """

    n_iter: int = Field(default=100, gt=0)
    n_target_classes: int | None = Field(default=None, gt=0)
    restarts: int | None = Field(default=None, gt=0)
    n_queries: int = Field(default=5000, gt=0)
    thorough: bool = False


class UntargetedBudget(AttackOptions):
    """The budget of an untargeted part."""

    n_iter: int = Field(default=100, gt=0)
    restarts: int | None = Field(default=None, gt=0)


class TargetedBudget(AttackOptions):
    """The budget of a targeted part."""

    n_iter: int = Field(default=100, gt=0)
    n_target_classes: int | None = Field(default=None, gt=0)


class QueryBudget(AttackOptions):
    """The budget of Square."""

    n_queries: int = Field(default=5000, gt=0)


def build_part(
    name: str, threat: ThreatModel, budget: AutoAttackBudget, classes: int, *, shrinking: bool = True
) -> Search[Any]:
    """The part of AutoAttack with this name, for a model of so many classes; ``shrinking``: see
    ``SparseAPGD``."""
    l1 = threat.norm == "l1"
    n_iter, restarts = budget.n_iter, budget.restarts or (5 if l1 else 1)
    match name:
        case "apgd-ce":
            return apgd(threat, "ce", jobs=restarts, n_iter=n_iter, shrinking=shrinking)
        case "apgd-dlr":
            loss = dlr_or_margin("dlr", classes)
            return apgd(threat, loss, jobs=restarts, n_iter=n_iter, shrinking=shrinking)
        case "apgd-t":
            loss = dlr_or_margin("dlr-targeted", classes)
            jobs = count_targets(budget.n_target_classes, classes, 5 if l1 else 9)
            return apgd(threat, loss, jobs=jobs, n_iter=n_iter, shrinking=shrinking)
        case "fab":
            return LeanUntargetedFAB(threat, jobs=restarts, n_iter=n_iter)
        case "fab-t":
            return LeanFAB(threat, jobs=count_targets(budget.n_target_classes, classes, 9), n_iter=n_iter)
        case "square":
            return build_screened_square(threat, n_queries=budget.n_queries)
    raise AssertionError(name)


def dlr_or_margin(loss: str, classes: int) -> str:
    """The DLR loss of that name, or its numerator, the margin, if there are too few classes for the
    denominator.

    The denominator makes the loss independent of the scale of the logits; APGD depends on signs and
    directions only, so little is lost without it.
    """
    margins = {"dlr": "margin", "dlr-targeted": "margin-targeted"}
    return loss if classes >= CLASSES_NEEDED[loss] else margins[loss]


def count_targets(wanted: int | None, classes: int, default: int) -> int:
    """How many classes a targeted part aims at: ``wanted`` or the ``default``, at most all but the label."""
    return min(wanted or default, classes - 1)


class AutoAttackParts(Cascade):
    """Parts of AutoAttack as a cascade; a single part has no audit and is thorough.

    A subclass sets ``title``, its name; ``parts``; ``options_type``, the options that it takes;
    ``budget_type`` with ``defaults``, what the options are filled up to; and ``shrinking`` (see
    ``SparseAPGD``).
    """

    reference = "Croce and Hein 2020, arXiv:2003.01690"
    title: str
    parts: tuple[str, ...]
    options_type: ClassVar[type[AttackOptions]] = AutoAttackBudget
    budget_type: ClassVar[type[AutoAttackBudget]] = AutoAttackBudget
    defaults: Mapping[str, Any] = {}
    shrinking: bool = True

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        given = self.options_type.validated(options, self.title)
        self.budget = self.budget_type(**{**self.defaults, **given.model_dump(exclude_defaults=True)})
        super().__init__(threat, self.parts, thorough=self.budget.thorough or len(self.parts) == 1)
        self.name = given.attack_name(self.title)

    def stages(self, model: Classifier) -> list[Stage]:
        return [Stage(name, self.search(name, model.num_classes)) for name in self.parts]

    def search(self, name: str, classes: int) -> Search[Any]:
        """The part of that name for a model of so many classes."""
        return build_part(name, self.threat, self.budget, classes, shrinking=self.shrinking)


class AutoAttack(AutoAttackParts):
    """The standard version: APGD-CE, APGD-T, FAB-T, Square."""

    title = "autoattack"
    parts = STANDARD


class AutoAttackPlus(AutoAttackParts):
    """The version ``plus``: more parts, 5 restarts of the untargeted ones, 9 target classes in every norm,
    and no shrinking ball in L1."""

    title = "autoattack-plus"
    parts = PLUS
    defaults = PLUS_BUDGET
    shrinking = False


class AutoAttackRand(AutoAttackParts):
    """The version ``rand`` for stochastic models: APGD-CE and APGD-DLR on means over 20 draws, with one
    restart and no shrinking ball in L1.

    Unlike in the reference, the best point and success are decided by the mean as well.
    """

    title = "autoattack-rand"
    parts = RAND
    options_type = UntargetedBudget
    defaults: Mapping[str, Any] = {"restarts": 1, "thorough": True}
    shrinking = False

    def stages(self, model: Classifier) -> list[Stage]:
        stages = super().stages(model)
        if not model.stochastic:  # all draws are equal
            return stages
        return [stage._replace(victim=partial(EOT, m=RAND_DRAWS)) for stage in stages]


class ApgdCe(AutoAttackParts):
    """Auto-PGD on the cross-entropy alone."""

    title = "apgd-ce"
    parts = ("apgd-ce",)
    options_type = UntargetedBudget


class ApgdDlr(AutoAttackParts):
    """Auto-PGD on the difference-of-logits ratio alone."""

    title = "apgd-dlr"
    parts = ("apgd-dlr",)
    options_type = UntargetedBudget


class ApgdT(AutoAttackParts):
    """Auto-PGD on the targeted difference-of-logits ratio alone."""

    title = "apgd-t"
    parts = ("apgd-t",)
    options_type = TargetedBudget


class Fab(AutoAttackParts):
    """The untargeted Fast Adaptive Boundary attack alone (Croce and Hein 2020, arXiv:1907.02044)."""

    title = "fab"
    parts = ("fab",)
    options_type = UntargetedBudget


class FabT(AutoAttackParts):
    """The targeted Fast Adaptive Boundary attack alone."""

    title = "fab-t"
    parts = ("fab-t",)
    options_type = TargetedBudget


class SquareAttack(AutoAttackParts):
    """The black-box Square attack alone (Andriushchenko et al. 2020, arXiv:1912.00049)."""

    title = "square"
    parts = ("square",)
    options_type = QueryBudget

    def search(self, name: str, classes: int) -> Search[Any]:
        return square(self.threat, n_queries=self.budget.n_queries)  # without gradients: no screening
