"""AutoAttack (Croce and Hein 2020, arXiv:2003.01690): its parts, and its versions as cascades.

Parts, order and budgets are those of the reference's code of 2023: see docs/attacks.md for what is
the same, and what is done otherwise to be quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from robustgen import strict
from robustgen.attacks.apgd import apgd
from robustgen.attacks.cascade import Cascade, Stage
from robustgen.attacks.fab import LeanFAB, LeanUntargetedFAB
from robustgen.attacks.losses import CLASSES_NEEDED
from robustgen.attacks.options import Options
from robustgen.attacks.screen import screened_square
from robustgen.attacks.search import Search
from robustgen.attacks.square import square
from robustgen.attacks.victims import Averaged
from robustgen.classifiers.base import Classifier
from robustgen.threat import ThreatModel

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
PLUS = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
RAND = ("apgd-ce", "apgd-dlr")
RAND_DRAWS = 20
PLUS_BUDGET = {"restarts": 5, "n_target_classes": 9}


class Budget(Options):
    """The budget of the standard version: steps of APGD and FAB, classes that APGD-T and FAB-T aim
    at (None: 9, in L1 5 for APGD-T; never more than there are), restarts of the untargeted parts
    (None: 1, in L1 5), Square's queries, and whether every job runs to its end (see ``Cascade``)."""

    n_iter: int = Field(default=100, gt=0)
    n_target_classes: int | None = Field(default=None, gt=0)
    restarts: int | None = Field(default=None, gt=0)
    n_queries: int = Field(default=5000, gt=0)
    thorough: bool = False


class IterBudget(Options):
    """The budget of an untargeted part."""

    n_iter: int = Field(default=100, gt=0)
    restarts: int | None = Field(default=None, gt=0)


class TargetBudget(Options):
    """The budget of a targeted part."""

    n_iter: int = Field(default=100, gt=0)
    n_target_classes: int | None = Field(default=None, gt=0)


class QueryBudget(Options):
    """The budget of Square."""

    n_queries: int = Field(default=5000, gt=0)


def part(
    name: str, threat: ThreatModel, budget: Budget, classes: int, *, shrinking: bool = True
) -> Search[Any]:
    """One part of AutoAttack, by its name, for a model with so many classes; ``shrinking`` is for APGD in
    L1 (see ``SparseAPGD``)."""
    l1 = threat.norm == "l1"
    n_iter, restarts = budget.n_iter, budget.restarts or (5 if l1 else 1)
    match name:
        case "apgd-ce":
            return apgd(threat, "ce", jobs=restarts, n_iter=n_iter, shrinking=shrinking)
        case "apgd-dlr":
            loss = scaled("dlr", classes)
            return apgd(threat, loss, jobs=restarts, n_iter=n_iter, shrinking=shrinking)
        case "apgd-t":
            loss = scaled("dlr-targeted", classes)
            jobs = target_classes(budget.n_target_classes, classes, 5 if l1 else 9)
            return apgd(threat, loss, jobs=jobs, n_iter=n_iter, shrinking=shrinking)
        case "fab":
            return LeanUntargetedFAB(threat, jobs=restarts, n_iter=n_iter)
        case "fab-t":
            return LeanFAB(threat, jobs=target_classes(budget.n_target_classes, classes, 9), n_iter=n_iter)
        case "square":
            return screened_square(threat, n_queries=budget.n_queries)
    raise AssertionError(name)


def scaled(loss: str, classes: int) -> str:
    """A DLR loss, or the margin for fewer classes than its denominator has logits.

    The denominator makes the loss independent of the logits' scale; APGD's steps and tests depend on
    signs and directions, so little is lost without it.
    """
    margins = {"dlr": "margin", "dlr-targeted": "margin-targeted"}
    return loss if classes >= CLASSES_NEEDED[loss] else margins[loss]


def target_classes(wanted: int | None, classes: int, reference: int) -> int:
    """At how many classes a targeted part aims: as many as are ``wanted`` (None: as the ``reference`` does),
    never more than there are beside the label."""
    return min(wanted or reference, classes - 1)


class Parts(Cascade):
    """Parts of AutoAttack in order, each from the clean pictures on those samples still classified right.

    A part alone, which nothing audits, is thorough.
    """

    reference = "Croce and Hein 2020, arXiv:2003.01690"
    title: str
    parts: tuple[str, ...]
    options_type: ClassVar[type[Options]] = Budget
    budget_type: ClassVar[type[Budget]] = Budget
    defaults: Mapping[str, Any] = {}
    shrinking: bool = True

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        given = strict.validate(self.options_type, options, where=f"options of the attack {self.title!r}")
        self.budget = self.budget_type(**{**self.defaults, **given.model_dump(exclude_defaults=True)})
        super().__init__(threat, self.parts, thorough=self.budget.thorough or len(self.parts) == 1)
        self.name = given.mark(self.title)

    def stages(self, model: Classifier) -> list[Stage]:
        return [Stage(name, self.search(name, model.num_classes)) for name in self.parts]

    def search(self, name: str, classes: int) -> Search[Any]:
        """The part of that name for a model with so many classes."""
        return part(name, self.threat, self.budget, classes, shrinking=self.shrinking)


class AutoAttack(Parts):
    """The standard version: APGD-CE, APGD-T, FAB-T, Square."""

    title = "autoattack"
    parts = STANDARD


class AutoAttackPlus(Parts):
    """The version ``plus``: more parts, and 5 restarts of the untargeted ones; 9 classes are aimed at,
    and no ball shrinks, in L1 neither."""

    title = "autoattack-plus"
    parts = PLUS
    defaults = PLUS_BUDGET
    shrinking = False


class AutoAttackRand(Parts):
    """The version ``rand`` for stochastic models: APGD-CE and APGD-DLR on means over 20 draws.

    Unlike the reference's, the best point and its success are decided by the mean as well. One restart,
    and no ball shrinks, in L1 neither.
    """

    title = "autoattack-rand"
    parts = RAND
    options_type = IterBudget
    defaults: Mapping[str, Any] = {"restarts": 1, "thorough": True}
    shrinking = False

    def stages(self, model: Classifier) -> list[Stage]:
        stages = super().stages(model)
        if not model.stochastic:  # all of its draws are one
            return stages
        return [stage._replace(victim=partial(Averaged, m=RAND_DRAWS)) for stage in stages]


class ApgdCe(Parts):
    """Auto-PGD on the cross-entropy alone."""

    title = "apgd-ce"
    parts = ("apgd-ce",)
    options_type = IterBudget


class ApgdDlr(Parts):
    """Auto-PGD on the difference-of-logits ratio alone."""

    title = "apgd-dlr"
    parts = ("apgd-dlr",)
    options_type = IterBudget


class ApgdT(Parts):
    """Auto-PGD on the targeted difference-of-logits ratio alone."""

    title = "apgd-t"
    parts = ("apgd-t",)
    options_type = TargetBudget


class Fab(Parts):
    """The untargeted Fast Adaptive Boundary attack alone (Croce and Hein 2020, arXiv:1907.02044)."""

    title = "fab"
    parts = ("fab",)
    options_type = IterBudget


class FabT(Parts):
    """The targeted Fast Adaptive Boundary attack alone."""

    title = "fab-t"
    parts = ("fab-t",)
    options_type = TargetBudget


class SquareAttack(Parts):
    """The black-box Square attack alone (Andriushchenko et al. 2020, arXiv:1912.00049)."""

    title = "square"
    parts = ("square",)
    options_type = QueryBudget

    def search(self, name: str, classes: int) -> Search[Any]:
        return square(self.threat, n_queries=self.budget.n_queries)  # no gradient screens its questions
