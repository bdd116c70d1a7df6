"""A cascade: attacks in order, each on the samples that those before it did not break."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from robustgen.attacks.progress import Progress
from robustgen.attacks.search import Search, run
from robustgen.attacks.victim import Victim, VictimFactory, default_victim
from robustgen.audit import AUDIT, audited_indices, is_repeated
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch, serving
from robustgen.draws import Draws
from robustgen.perturb import Attack, Perturbed
from robustgen.threat import ThreatModel


class Stage(NamedTuple):
    """One attack of a cascade: its name in ``broken_by``, its search, and the victim that it queries."""

    name: str
    search: Search[Any]
    victim: VictimFactory = default_victim


class Cascade(Attack):
    """Attacks in order, each from the clean images of those samples that are still classified right.

    ``broken_by`` names the stage that broke a sample. The clean image is returned where no stage succeeded,
    and where it was misclassified already.

    Unless ``thorough``, jobs that are unlikely to succeed end early (early_stopping.py), though never those
    of a stochastic model. Where jobs may end early, or gradients are in bfloat16, an audit follows: every
    8th survivor of the batch (at least 4) goes once more through the stages that ``audit.is_repeated``
    names, with full jobs and float32 gradients.
    """

    def __init__(self, threat: ThreatModel, stage_names: tuple[str, ...], *, thorough: bool = True) -> None:
        super().__init__(threat)
        self.stage_names = stage_names
        self.thorough = thorough

    @abstractmethod
    def stages(self, model: Classifier) -> list[Stage]:
        """The stages for this model, in the order of ``stage_names``; those that do not apply are left
        out."""

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> Perturbed:
        progress = Progress(model, x, y)
        stages = self.stages(model)
        thorough = self.thorough or model.stochastic
        for place, stage in enumerate(stages):
            rows = progress.remaining()
            _run_stage(stage, progress, x, rows, draws.at(rows, place), thorough=thorough)
        if not thorough or (isinstance(model, FixedBatch) and model.bfloat16_gradients):
            survivors = progress.remaining()
            chosen = survivors[audited_indices(len(survivors))]
            for place, stage in enumerate(stages, start=len(stages)):
                if is_repeated(stage.name, early=not thorough):
                    rows = chosen[progress.robust[chosen]]
                    again = stage._replace(name=AUDIT, victim=_in_float32(stage.victim))
                    _run_stage(again, progress, x, rows, draws.at(rows, place), thorough=True)
        return Perturbed(progress.images, progress.broken_by)


def _run_stage(
    stage: Stage, progress: Progress, x: Tensor, rows: Tensor, draws: Draws, *, thorough: bool
) -> None:
    """Attack the samples ``rows`` of the batch x."""
    if len(rows) == 0:
        return
    model = progress.model
    width = model.batch if isinstance(model, FixedBatch) else None
    with serving(model, rows):
        result = run(
            stage.search,
            stage.victim(model),
            x[rows],
            progress.y[rows],
            draws,
            width=width,
            thorough=thorough,
        )
    if model.stochastic:
        # The best of many points was chosen by its draws, which flatter it: fresh ones say what it is worth.
        progress.judge(rows, result.images, stage.name)
    else:
        progress.add_hits(rows[result.broken], result.images[result.broken], stage.name)


def _in_float32(victim: VictimFactory) -> VictimFactory:
    """The same victim with float32 gradients."""

    def with_float32_gradients(model: Classifier) -> Victim:
        made = victim(model)
        made.bfloat16_gradients = False
        return made

    return with_float32_gradients
