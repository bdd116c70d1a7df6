"""A plan while it is being built: data, settings, and the evaluations added or refused so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from robustgen.config import DataSettings
from robustgen.data import Dataset
from robustgen.errors import UnknownNameError, UserError
from robustgen.evaluation import Evaluation, load_data
from robustgen.perturb import Identity, Perturbation
from robustgen.scores import Score
from robustgen.types import Kind, Norm, Split

T = TypeVar("T")


@dataclass
class PlanBuilder:
    """Collects the evaluations of a data set's test split under a protocol's ``settings`` for it.

    ``scores`` are computed for clean and foreign pictures besides those from logits; ``scored`` describes
    them in run.json. ``refused``: what cannot be measured here, each with the reason.
    """

    settings: DataSettings
    dataset: Dataset
    root: Path | None
    scores: tuple[Score, ...] = ()
    scored: dict[str, Any] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)

    def add(
        self, name: str, kind: Kind, detail: dict[str, Any], *, perturbation: Perturbation | None = None,
        **more: Any,
    ) -> None:  # fmt: skip
        """Add an evaluation. ``more``: other fields of ``Evaluation``, by default of the whole test split.

        Raises UserError for an eps in Linf above 1, the largest distance of two pictures.
        """
        if detail.get("norm") == "linf" and detail["eps"] > 1:
            raise UserError(
                "this eps bounds nothing: no two pictures are farther apart in Linf than 1",
                where=f"the protocol's evaluation {name!r}",
                expected="at most 1, in pixel units, such as 8/255", got=detail["eps"],
            )  # fmt: skip
        fields: dict[str, Any] = {
            "data": self.dataset.name,
            "split": "test",
            "size": len(self.dataset),
        } | more
        self.evaluations.append(
            Evaluation(name, kind, detail=detail, perturbation=perturbation or Identity(), **fields)
        )

    def refuse(self, evaluation: str, reason: str) -> None:
        """Leave an evaluation out; the report gives the reason."""
        self.refused.append({"evaluation": evaluation, "reason": reason})

    def split_loader(self, name: Split) -> Callable[[], Dataset]:
        """A function that loads a split of the data."""
        return partial(load_data, self.dataset.source, name, self.root)

    def load_or_refuse(self, evaluation: str, load: Callable[[], T]) -> T | None:
        """What ``load`` returns; if it raises a UserError, refuse the evaluation and return None.

        A data set whose pictures have another shape than the test split's is refused too. A misspelt name
        (UnknownNameError) remains an error.
        """
        try:
            found = load()
        except UnknownNameError:
            raise
        except UserError as error:
            self.refuse(evaluation, error.what)
            return None
        if isinstance(found, Dataset) and found.shape != self.dataset.shape:
            wanted, got = self.dataset.shape, found.shape
            self.refuse(evaluation, f"pictures of shape {got} cannot stand in for the test split's {wanted}")
            return None
        return found

    def eps_or_refuse(self, norm: Norm, own: float | None, evaluation: str) -> float | None:
        """The evaluation's own eps, else the data's for that norm; without either, refuse the evaluation."""
        eps = own or self.settings.eps.get(norm)
        if eps is None:
            self.refuse(evaluation, f"the protocol has no eps for {norm} on {self.dataset.name!r}")
        return eps
