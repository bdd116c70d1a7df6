"""What APGD meets on its way up the cross-entropy, checkpoint by checkpoint, and whether its seed decides.

A part of the probes (probes.py), on few samples since a climb costs what an attack does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robustgen.attacks.apgd import apgd, checkpoint_intervals
from robustgen.attacks.search import Start
from robustgen.attacks.victims import usual_view
from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

STEPS = 50
CHECKPOINTS = (0, *checkpoint_intervals(STEPS).nonzero().flatten().tolist(), STEPS)
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}
COLUMNS = (
    "climb_ce_gradient_zero", "climb_gradient_zero", "climb_promised", "climb_rise", "climb_fall",
    "climb_broken", "climb_broken_again",
)  # fmt: skip


def climb(model: Classifier, x: Tensor, y: Tensor, draws: Draws, threat: ThreatModel) -> dict[str, Tensor]:
    """APGD on the log odds (losses.py) from two random starts, all steps even where it succeeds.

    ``COLUMNS``, (batch,) each. Of the first start, over the checkpoints, start and end among them:
    ``climb_ce_gradient_zero``, ``climb_gradient_zero``: the largest share of entries that are exactly 0,
    in the gradient of the float32 cross-entropy and in the log odds' own; ``climb_promised``: the most
    that a step of eps is promised to add, in units of the spread of the logits; ``climb_rise``, from the
    start to the highest loss, and ``climb_fall``, from there to the end. ``climb_broken``,
    ``climb_broken_again``: whether the first and the second start broke the sample.
    """
    first, broken = _one(model, x, y, draws, threat, 0)
    _, again = _one(model, x, y, draws, threat, 1)
    losses, ce_zero, zero, promised = (torch.stack(several) for several in zip(*first, strict=True))
    highest = losses.amax(0)
    values = (
        ce_zero.amax(0), zero.amax(0), promised.amax(0), highest - losses[0], highest - losses[-1],
        broken.float(), again.float(),
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _one(
    model: Classifier, x: Tensor, y: Tensor, draws: Draws, threat: ThreatModel, job: int
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """Loss, shares of zeros and promise at each checkpoint, of the first start alone; who is broken."""
    search, victim = apgd(threat, "ce", n_iter=STEPS, shrinking=False), usual_view(model)
    rows = torch.arange(len(x), device=x.device)
    jobs = torch.full_like(rows, job)
    state = search.begin(Start(rows, x, y, x.new_empty(len(x), 0), jobs), draws.at(rows, jobs))
    broken = torch.zeros_like(state.over)
    facts: list[tuple[Tensor, ...]] = []
    for step in range(STEPS + 1):
        answer = search.ask(victim, state)
        assert answer.loss is not None
        assert answer.gradient is not None
        broken = broken | (answer.logits.argmax(1) != y)
        if job == 0 and step in CHECKPOINTS:
            slope = torch.linalg.vector_norm(answer.gradient.flatten(1), ord=DUAL[threat.norm], dim=1)
            spread = (answer.logits.amax(1) - answer.logits.amin(1)).clamp_min(1e-12)
            ce = victim.gradient(
                state.point, lambda logits: functional.cross_entropy(logits, y, reduction="none")
            )
            assert ce.gradient is not None
            facts.append(
                (answer.loss, zeros(ce.gradient), zeros(answer.gradient), threat.eps * slope / spread)
            )
        search.step(state, answer)
    return facts, broken


def zeros(gradient: Tensor) -> Tensor:
    """The share of entries that are exactly 0, (batch,)."""
    return (gradient == 0).flatten(1).float().mean(1)
