"""How APGD's loss and gradients develop along its path, and whether its random start decides the outcome.

The probes (probes.py) look at gradients at the clean images; this readout looks at the iterates of an
attack. It costs as much as an attack, so only a few samples are followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.attacks.apgd import apgd, checkpoint_intervals
from robustgen.attacks.ball import DUAL
from robustgen.attacks.probes import zeros
from robustgen.attacks.search import Start
from robustgen.attacks.victim import default_victim
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import serving
from robustgen.draws import Draws
from robustgen.perturb import Readout
from robustgen.threat import ThreatModel

if TYPE_CHECKING:
    import pyarrow

STEPS = 50
CHECKPOINTS = (0, *checkpoint_intervals(STEPS).nonzero().flatten().tolist(), STEPS)
COLUMNS = ("ce_gradient_zero", "gradient_zero", "promised", "rise", "fall", "broken", "broken_again")


class Climbs(Readout):
    """APGD on the log odds (losses.py) from two random starts, always to the last step.

    One row for each sample whose id is a multiple of ``every``; none for a model without gradients.
    Columns, the first ones over the checkpoints of the first start, its first and last point included:

    - ``ce_gradient_zero``, ``gradient_zero``: the largest share of gradient entries that are exactly 0, of
    the float32 cross-entropy and of the log odds. - ``promised``: the largest first-order increase of the
    loss over a step of eps, in units of the spread of the logits. - ``rise``, ``fall``: of the loss, from
    the start to its highest value and from there to the end. - ``broken``, ``broken_again``: whether the
    first and the second start broke the sample.
    """

    name = "climbs"

    def __init__(self, threat: ThreatModel, every: int = 8) -> None:
        self.threat = threat
        self.every = every

    def __call__(self, model: Classifier, x: Tensor, y: Tensor, draws: Draws) -> pyarrow.Table:
        """Follow APGD from images x (batch, ...) with labels y; columns as in ``schema()``."""
        import pyarrow

        some = torch.from_numpy(draws.sample_ids % self.every == 0).nonzero().squeeze(1)
        if not len(some) or not differentiable(model, x):
            return schema().empty_table()
        rows = some.to(x.device)
        with serving(model, rows):
            found = climb(model, x[rows], y[rows], draws.at(rows, 0), self.threat)
        columns = {"sample_id": draws.sample_ids[some.numpy()]}
        columns |= {name: values.float().cpu().numpy() for name, values in found.items()}
        return pyarrow.table(columns, schema=schema())


def schema() -> pyarrow.Schema:
    """The columns of the table: sample_id, then floats."""
    import pyarrow

    return pyarrow.schema([("sample_id", pyarrow.int64()), *((name, pyarrow.float32()) for name in COLUMNS)])


def differentiable(model: Classifier, x: Tensor) -> bool:
    """Whether the logits depend differentiably on the pixels."""
    with torch.enable_grad():
        x = x[:1].detach().requires_grad_()
        logits = model.logits(x)
        if not logits.requires_grad:
            return False
        return torch.autograd.grad(logits.sum(), x, allow_unused=True)[0] is not None


def climb(model: Classifier, x: Tensor, y: Tensor, draws: Draws, threat: ThreatModel) -> dict[str, Tensor]:
    """The columns ``COLUMNS``, (batch,) each, for images x (batch, ...) with labels y."""
    path, broken = _follow(model, x, y, draws, threat, 0)
    _, again = _follow(model, x, y, draws, threat, 1)
    losses, ce_zero, zero, promised = (torch.stack(facts) for facts in zip(*path, strict=True))
    highest = losses.amax(0)
    values = (
        ce_zero.amax(0), zero.amax(0), promised.amax(0), highest - losses[0], highest - losses[-1],
        broken.float(), again.float(),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


class Checkpoint(NamedTuple):
    """What APGD meets at a checkpoint, (batch,) each; see ``Climbs``."""

    loss: Tensor
    ce_gradient_zero: Tensor
    gradient_zero: Tensor
    promised: Tensor


def _follow(
    model: Classifier, x: Tensor, y: Tensor, draws: Draws, threat: ThreatModel, job: int
) -> tuple[list[Checkpoint], Tensor]:
    """The checkpoints of a start (of job 0 only), and which samples it broke."""
    search, victim = apgd(threat, "ce", n_iter=STEPS, shrinking=False), default_victim(model)
    rows = torch.arange(len(x), device=x.device)
    jobs = torch.full_like(rows, job)
    state = search.begin(Start(rows, x, y, x.new_empty(len(x), 0), jobs), draws.at(rows, jobs))
    broken = torch.zeros_like(state.done)
    path: list[Checkpoint] = []
    for step in range(STEPS + 1):
        answer = search.query(victim, state)
        loss, gradient = answer.loss_and_gradient
        broken = broken | (answer.logits.argmax(1) != y)
        if job == 0 and step in CHECKPOINTS:
            slope = torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[threat.norm], dim=1)
            spread = (answer.logits.amax(1) - answer.logits.amin(1)).clamp_min(1e-12)
            _, of_ce = victim.gradient(
                state.point, lambda logits: functional.cross_entropy(logits, y, reduction="none")
            ).loss_and_gradient
            path.append(Checkpoint(loss, zeros(of_ce), zeros(gradient), threat.eps * slope / spread))
        search.update(state, answer)
    return path, broken
