"""What a plan is while it is made: what is known of data and protocol, and what is planned so far."""

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

Found = TypeVar("Found")


@dataclass
class Planning:
    """Evaluations of a data set's test split under a protocol's ``settings`` for it.

    ``scores`` are read of own and foreign pictures beside what the logits say, and ``scored`` is how
    run.json says so. ``refused``: what cannot be measured here, with the reason.
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
        """Plan an evaluation: of the whole test split, unless ``more``, its other fields, says otherwise.

        A UserError where an eps in Linf is larger than pictures are apart: no number of a report is of that.
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
        """Leave an evaluation out, and say why."""
        self.refused.append({"evaluation": evaluation, "reason": reason})

    def split(self, name: Split) -> Callable[[], Dataset]:
        """What loads another split of the data."""
        return partial(load_data, self.dataset.source, name, self.root)

    def at_hand(self, evaluation: str, load: Callable[[], Found]) -> Found | None:
        """What ``load`` returns; None, and the evaluation refused, where it is not at hand here and now.

        Nor is another split whose pictures have another shape. A slip in a name remains an error.
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

    def eps(self, norm: Norm, own: float | None, evaluation: str) -> float | None:
        """An evaluation's own eps or the data's for that norm; where there is none, it is refused."""
        found = own or self.settings.eps.get(norm)
        if found is None:
            self.refuse(evaluation, f"the protocol has no eps for {norm} on {self.dataset.name!r}")
        return found
