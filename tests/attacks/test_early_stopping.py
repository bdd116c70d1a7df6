"""Jobs that are unlikely to succeed end early, and no others."""

import pytest
import torch
from torch import Tensor

from robustgen.attacks.early_stopping import stop_early
from robustgen.attacks.search import Search, SearchResult, Start, State, run
from robustgen.attacks.victim import Answer, Victim
from robustgen.classifiers.base import Classifier
from robustgen.draws import Draws

LENGTH = 64  # looks after 4, 8, 16 and 32 steps


def asked(lacking: list[float]) -> int:
    """Steps that a job takes which lacks lacking[i] after i + 1 steps."""
    one = torch.zeros(1, dtype=torch.long)
    start = Start(one, torch.zeros(1, 1, 1, 1), one, torch.zeros(1, 2), one)
    state = State(**start.fields(), point=start.x)
    for step, value in enumerate(lacking, start=1):
        state.step = one + step
        state.done = state.step >= LENGTH
        stop_early(state, torch.tensor([value]), LENGTH)
        if bool(state.done):
            return step
    raise AssertionError("the job never ended")


def line(reached_after: float) -> list[float]:
    """From 1, at one rate, 0 after so many steps."""
    return [1 - step / reached_after for step in range(1, LENGTH + 1)]


@pytest.mark.parametrize(
    ("lacking", "steps"),
    [
        (line(63.9), 64),  # arrives
        (line(70.0), 8),  # would not, as the second look shows
        (64 * [1.0], 8),
        (64 * [torch.inf], 8),  # nothing was ever adversarial
        (7 * [torch.inf] + 57 * [1.0], 16),  # known by the second look: the third compares
        ([1.0] + 63 * [0.19], 64),  # near
        ([1.0] + 63 * [0.21], 8),
        (line(63.9)[:20] + 44 * [line(63.9)[19]], 32),  # stops on its way, still in sight of its end at 16
        (64 * [-0.1], 64),  # more than the loss needs, though no hit: other classes may be in the way
    ],
)
def test_a_job_goes_on_while_its_gap_would_close_at_its_rate_or_is_small(
    lacking: list[float], steps: int
) -> None:
    assert asked(lacking) == steps


class Walker(Search[State]):
    """Goes towards grey 1 at a rate of its picture's, ``n_steps`` steps; success is at grey 1."""

    n_steps = LENGTH

    def __init__(self) -> None:
        self.asked = torch.zeros(3, dtype=torch.long)

    def begin(self, start: Start, draws: Draws) -> State:
        return State(**start.fields(), point=torch.zeros_like(start.x))

    def query(self, victim: Victim, state: State) -> Answer:
        self.asked[state.row] += 1
        return victim.logits(state.point)

    def update(self, state: State, answer: Answer) -> None:
        state.step = state.step + 1
        state.point = state.point + state.x
        state.done = state.step >= self.n_steps

    def gap(self, state: State) -> Tensor:
        return 1 - state.point.flatten(1)[:, 0]


class White(Classifier):
    """Class 1 for white alone."""

    num_classes, input_shape = 2, (1, 1, 1)

    def __init__(self, stochastic: bool = False) -> None:
        super().__init__()
        self.stochastic = stochastic

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        level = x.flatten(1)[:, 0] - 1
        return torch.stack([-level, level + 1e-6], 1)


def walk(thorough: bool) -> tuple[SearchResult, list[int]]:
    search = Walker()
    x = torch.tensor([1 / 60, 1 / 70, 1 / 32]).view(3, 1, 1, 1)
    labels = torch.zeros(3, dtype=torch.long)
    draws = Draws(0, "early", torch.arange(3))
    return run(search, Victim(White()), x, labels, draws, thorough=thorough), search.asked.tolist()


def test_only_jobs_that_cannot_succeed_are_ended_early() -> None:
    lean, few = walk(False)
    full, many = walk(True)
    assert lean.broken.tolist() == full.broken.tolist() == [True, False, True]
    assert torch.equal(lean.images, full.images)
    assert many[1] == LENGTH
    assert few == [many[0], 8, many[2]]
