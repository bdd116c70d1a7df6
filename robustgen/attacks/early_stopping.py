"""Jobs that are unlikely to succeed end early; most of AutoAttack's queries are spent on them.

On a robust model hardly any job of APGD-T, FAB-T or Square succeeds, and those that do come near soon. A
job's gap is how far its best point is from success. It is checked after 1/16, 1/8, 1/4 and 1/2 of the
steps, and the job goes on if it would succeed at the rate since the last check, or if its gap is below a
fifth of the first one. As a rule the gap falls ever more slowly, so extrapolating at a constant rate is
optimistic; a cascade's audit measures what is lost. docs/attacks.md says how the rule was chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from robustgen.attacks.search import State

FIRST_CHECK = 1 / 16  # as a share of a job's steps; each check comes at twice the step of the one before
NEAR = 0.2  # a job with a gap below this share of its first one goes on


def stop_early(state: State, gap: Tensor, n_steps: int) -> None:
    """Set ``done`` for the rows whose jobs, of ``n_steps`` steps, are unlikely to succeed. ``gap`` (rows,):
    as ``Search.gap`` returns it, inf where it is not known yet."""
    initial_gap = torch.where(state.initial_gap.isinf() & gap.isfinite(), gap, state.initial_gap)
    check = state.step >= torch.where(state.last_check == 0, FIRST_CHECK * n_steps, 2 * state.last_check)
    rate = (state.last_gap - gap) / (state.step - state.last_check)
    succeeds = rate * (n_steps - state.step) >= gap  # false for inf - inf: still unknown at the second check
    far = gap.isinf() | (gap > NEAR * initial_gap)
    state.done = state.done | (check & (state.last_check > 0) & far & ~succeeds)
    state.initial_gap = initial_gap
    state.last_gap = torch.where(check, gap, state.last_gap)
    state.last_check = torch.where(check, state.step, state.last_check)
