"""The runner of searches: rows that leave, rows that take their place, and what neither may change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustgen.attacks.apgd import apgd
from robustgen.attacks.search import Search, SearchResult, Start, State, run
from robustgen.attacks.victim import Answer, Victim
from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.draws import Draws
from robustgen.errors import UserError
from robustgen.threat import ThreatModel

EPS = {"linf": 0.1, "l2": 0.6, "l1": 2.0}


@pytest.mark.parametrize("loss", ["ce", "dlr-targeted"])
@pytest.mark.parametrize("norm", EPS)
def test_a_row_does_not_see_its_neighbours(
    trained: FixedBatch, digits: Dataset, norm: str, loss: str
) -> None:
    search = apgd(ThreatModel(norm, EPS[norm]), loss, jobs=2, n_iter=12)

    def some(rows: Tensor, width: int | None = None) -> SearchResult:
        trained.begin(len(rows))
        x, y = digits.images[rows], digits.labels[rows]
        return run(search, Victim(trained), x, y, Draws(3, "e", digits.sample_ids[rows]), width=width)

    whole = some(torch.arange(32))
    assert 4 < int(whole.broken.sum()) < 28
    for rows, width in (
        (torch.arange(32).flip(0), None),
        (torch.arange(32), 1),
        (torch.arange(32), 5),
        (torch.arange(9, 30), 8),
        (torch.tensor([int(whole.broken.nonzero()[-1])]), None),
        (torch.tensor([4, 4, 4]), 2),
    ):
        part = some(rows, width)
        assert torch.equal(part.images, whole.images[rows])
        assert torch.equal(part.broken, whole.broken[rows])


class Countdown(Search[State]):
    """Asks about a picture of one grey value after another, ``n`` a job; draws go into the first."""

    def __init__(self, n: int, jobs: int = 1) -> None:
        self.n = n
        self.jobs = jobs
        self.asked: list[list[int]] = []

    def begin(self, start: Start, draws: Draws) -> State:
        assert len(draws) == len(start.row)
        return State(**start.fields(), point=torch.zeros_like(start.x))

    def query(self, victim: Victim, state: State) -> Answer:
        self.asked.append(state.row.tolist())
        return victim.logits(state.point)

    def update(self, state: State, answer: Answer) -> None:
        state.step = state.step + 1
        state.point = torch.ones_like(state.point) * (state.step / self.n + state.job).view(-1, 1, 1, 1)
        state.done = state.step >= self.n


class Threshold(Classifier):
    """Class 1 from the grey value ``limit`` on, class 0 below; ``logits`` may be made to differ."""

    num_classes, input_shape = 2, (1, 2, 2)

    def __init__(self, limit: float, *, stochastic: bool = False) -> None:
        super().__init__()
        self.limit = limit
        self.stochastic = stochastic
        self.largest = 0

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        self.largest = max(self.largest, len(x))
        level = x.mean((1, 2, 3)) - self.limit
        return torch.stack([-level, level], 1)


def search_in(model: Classifier, search: Search, n: int, width: int | None = None) -> SearchResult:
    x = torch.zeros(n, 1, 2, 2)
    labels = torch.zeros(n, dtype=torch.long)
    return run(search, Victim(model), x, labels, Draws(0, "e", torch.arange(n)), width=width)


def test_broken_rows_leave_at_once_and_others_take_their_place() -> None:
    search = Countdown(10)
    found = search_in(Threshold(0.25), search, 7, width=3)
    # broken by the 4th question (0, 0.1, 0.2, 0.3), three rows at a time
    assert search.asked == 4 * [[0, 1, 2]] + 4 * [[3, 4, 5]] + 4 * [[6]]
    assert found.broken.all()
    torch.testing.assert_close(found.images, torch.full((7, 1, 2, 2), 0.3))


def test_the_model_never_gets_more_than_the_width_and_all_of_it_while_rows_wait() -> None:
    model, search = Threshold(9.0), Countdown(5, jobs=2)
    found = search_in(model, search, 11, width=4)
    assert not found.broken.any()
    assert torch.equal(found.images, torch.zeros(11, 1, 2, 2))
    sizes = [len(rows) for rows in search.asked]
    assert max(sizes) == 4
    assert sizes[:20] == 20 * [4]
    for row in range(11):
        assert sum(rows.count(row) for rows in search.asked) == 2 * 5


def test_the_other_jobs_begin_together_where_the_first_has_failed() -> None:
    search = Countdown(4, jobs=3)
    found = search_in(Threshold(1.3), search, 2)
    assert found.broken.all()
    # the first point of a job is the clean picture; then the second asks about 1.25, the third about 2.25
    assert search.asked == 4 * [[0, 1]] + 2 * [[0, 0, 1, 1]]
    torch.testing.assert_close(found.images, torch.full((2, 1, 2, 2), 2.25))
    alone = Countdown(4, jobs=3)
    search_in(Threshold(0.3), alone, 2)  # broken by the first job
    assert alone.asked == 3 * [[0, 1]]


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_jobs_and_samples_that_wait_for_room_all_have_their_turn(width: int) -> None:
    model, search = Threshold(9.0), Countdown(5, jobs=3)
    assert not search_in(model, search, 6, width=width).broken.any()
    for row in range(6):
        assert sum(rows.count(row) for rows in search.asked) == 3 * 5
    assert max(len(rows) for rows in search.asked) <= max(width, 2)  # two jobs begin together


def test_of_several_points_of_a_sample_the_first_is_kept_or_the_highest() -> None:
    points = torch.arange(5.0).view(5, 1, 1, 1)
    rows = torch.tensor([2, 0, 2, 0, 2])
    found = SearchResult.initial(torch.full((3, 1, 1, 1), -1.0))
    found.add_hits(rows, points)
    assert found.images.flatten().tolist() == [1, -1, 0]
    assert found.broken.tolist() == [True, False, True]
    found = SearchResult.initial(torch.full((3, 1, 1, 1), -1.0))
    found.keep_highest(rows, points, torch.tensor([0.1, -3.0, 0.3, -2.0, 0.2]))
    assert found.images.flatten().tolist() == [3, -1, 2]
    found.keep_highest(rows, 10 + points, torch.tensor([0.1, 1.0, 0.2, -2.0, 0.2]))
    assert found.images.flatten().tolist() == [11, -1, 2]
    assert found.broken.tolist() == [True, False, True]


def test_calls_are_counted_for_the_rows_that_were_queried(trained: FixedBatch, digits: Dataset) -> None:
    trained.begin(32)
    found = run(
        apgd(ThreatModel("linf", 0.1), "ce", n_iter=12), Victim(trained), digits.images[:32],
        digits.labels[:32], Draws(0, "e", torch.arange(32)), width=8,
    )  # fmt: skip
    assert (trained.backwards[~found.broken] == 13).all()
    assert (trained.backwards[found.broken] <= 13).all()
    # no target: clean logits are not asked for; a hit is confirmed
    assert torch.equal(trained.forwards, trained.backwards + found.broken)
    assert float(trained.backwards[found.broken].mean()) < 8


class Strict(Victim):
    """The verdict is stricter than what the search sees: nothing below 0.6 counts."""

    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        return x.mean((1, 2, 3)) > 0.6


def test_a_hit_that_is_not_confirmed_is_none() -> None:
    x, y = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long)
    found = run(Countdown(11), Strict(Threshold(0.25)), x, y, Draws(0, "e", torch.arange(2)))
    assert found.broken.all()
    torch.testing.assert_close(found.images, torch.full_like(x, 7 / 11))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinite_logits_are_an_error(bad: float) -> None:
    class Broken(Threshold):
        def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
            return torch.where(x.mean((1, 2, 3))[:, None] > 0.25, bad, super().logits(x))

    with pytest.raises(UserError, match="NaN or infinite logits under attack"):
        search_in(Broken(2.0), Countdown(10), 3)


class Tent(Threshold):
    """The margin rises to its top, 0.5 above ``limit``, at the grey value 0.5, and falls again."""

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        level = 0.5 - (x.mean((1, 2, 3)) - 0.5).abs() - self.limit
        return torch.stack([-level, level], 1)


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_stochastic_models_rows_stay_and_the_highest_margin_comes_back(stochastic: bool) -> None:
    search = Countdown(10, jobs=2)
    found = search_in(Tent(0.15, stochastic=stochastic), search, 3)
    assert found.broken.all()
    if stochastic:
        assert len(search.asked) == 10  # to the end of the job, though it was wrong from 0.2 on
        torch.testing.assert_close(found.images, torch.full((3, 1, 2, 2), 0.5))
        torch.testing.assert_close(found.margin, torch.full((3,), 0.7))
    else:
        assert len(search.asked) == 3
        torch.testing.assert_close(found.images, torch.full((3, 1, 2, 2), 0.2))


def test_a_stochastic_model_that_stands_gives_its_weakest_point_and_every_job() -> None:
    search = Countdown(10, jobs=2)
    found = search_in(Tent(0.7, stochastic=True), search, 3)
    assert not found.broken.any()
    assert len(search.asked) == 20  # the second job after the first
    torch.testing.assert_close(found.images, torch.full((3, 1, 2, 2), 0.5))


class Lucky(Victim):
    """What the search takes for broken, other draws take for right."""

    def confirm(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(y, dtype=torch.bool)


def test_a_sample_that_a_lucky_draw_broke_gets_its_other_jobs() -> None:
    search, x = Countdown(10, jobs=2), torch.zeros(3, 1, 2, 2)
    victim = Lucky(Tent(0.15, stochastic=True))
    run(search, victim, x, torch.zeros(3, dtype=torch.long), Draws(0, "e", torch.arange(3)))
    assert len(search.asked) == 20


def test_points_outside_the_budget_do_not_count() -> None:
    class Late(Countdown):
        def within_budget(self, state: State) -> Tensor:
            return state.step >= 6

    for stochastic, grey in ((False, 0.6), (True, 0.9)):
        found = search_in(Threshold(0.25, stochastic=stochastic), Late(10), 2)
        torch.testing.assert_close(found.images, torch.full((2, 1, 2, 2), grey))


def test_targets_are_the_runners_up() -> None:
    clean = torch.tensor([[0.1, 5.0, 3.0, 4.0], [9.0, 1.0, 2.0, 3.0], [9.0, 1.0, 2.0, 3.0]])
    start = Start(torch.arange(3), clean, torch.tensor([1, 0, 0]), clean, torch.tensor([0, 0, 2]))
    assert start.target().tolist() == [3, 3, 1]


def test_a_class_that_ties_with_the_label_is_the_first_target() -> None:
    clean = torch.tensor([[2.0, 2.0, 0.0, -1.0, -2.0], [2.0, 2.0, 0.0, -1.0, -2.0]]).repeat_interleave(4, 0)
    y, jobs = torch.tensor([0, 1]).repeat_interleave(4), torch.arange(4).repeat(2)
    aims = Start(torch.arange(8), clean, y, clean, jobs).target()
    assert aims.tolist() == [1, 2, 3, 4, 0, 2, 3, 4]
