"""Evaluations, of which a plan consists, and data sets cached per process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from robustgen import data
from robustgen.data import Dataset
from robustgen.perturb import Perturbation, Readout
from robustgen.scores import Score
from robustgen.types import Kind, Split


@dataclass(frozen=True)
class Evaluation:
    """One thing to measure: data x perturbation x readout.

    ``detail`` describes perturbation and readouts in run.json. ``readouts`` are built when the first chunk
    needs them, since they may load the training split. ``scores`` are stored in the rows. ``foreign`` loads
    the pictures if they are not a split of the data.
    """

    name: str
    kind: Kind
    data: str
    split: Split
    size: int
    detail: dict[str, Any]
    perturbation: Perturbation
    readouts: Callable[[], tuple[Readout, ...]] = field(default=lambda: ())
    scores: tuple[Score, ...] = ()
    foreign: Callable[[], Dataset] | None = None

    def describe(self) -> dict[str, Any]:
        """The evaluation as run.json has it."""
        return {"name": self.name, "kind": self.kind, "data": self.data, "size": self.size, **self.detail}


class Plan(NamedTuple):
    """The evaluations of a protocol on a data set, and those that were refused, each with the reason."""

    evaluations: list[Evaluation]
    refused: list[dict[str, str]]


@cache
def load_data(source: str, split: Split, root: Path | None) -> Dataset:
    """``data.load``, cached: a run needs the same few splits again and again."""
    return data.load(source, split, root=root)


@cache
def load_foreign(source: str, familiar: str, root: Path | None) -> data.Foreign:
    """``data.load_foreign`` for the test split of ``familiar``, cached."""
    return data.load_foreign(source, load_data(familiar, "test", root), root)
