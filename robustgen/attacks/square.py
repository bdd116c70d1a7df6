"""The Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search, no gradients.

Every query changes a square window of the best point so far, and the change is kept if the margin rises. L1
as in Croce and Hein 2021 (arXiv:2103.01208). Where papers and AutoAttack's code differ, this follows the
code: a window's corner is drawn below side - size, so that no window smaller than the image reaches its
last row and column.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from robustgen.attacks.losses import margin
from robustgen.attacks.projections import shrink_to_l1_box
from robustgen.attacks.search import Search, Start, State
from robustgen.attacks.victim import Answer, Victim
from robustgen.draws import Draws, uniform_at
from robustgen.errors import UnsupportedError
from robustgen.threat import ThreatModel

P_INIT = 0.8  # the share of the pixels that the first windows cover
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # proposals after which the share is halved
TINY = 1e-12


@dataclass
class SquareState(State):
    """Rows of Square."""

    best: Tensor  # the best point so far, and its margin
    margin: Tensor
    key: Tensor  # the random stream that proposals are drawn from


class Square(Search[SquareState], ABC):
    """Square with ``n_queries`` proposals after the first point.

    A proposal takes ``n_place_draws`` draws for the place of its windows and one a channel for signs. The
    reference takes a margin of exactly 0 for a success as well; here ``search.run`` decides, by the
    predicted class.
    """

    n_place_draws: int

    def __init__(self, threat: ThreatModel, *, n_queries: int = 5000) -> None:
        self.threat = threat
        self.n_queries = self.n_steps = n_queries

    @abstractmethod
    def first_point(self, x: Tensor, draws: Draws) -> Tensor:
        """The point of the first query."""

    @abstractmethod
    def propose(self, state: SquareState, stage: Tensor, place: Tensor, signs: Tensor) -> Tensor:
        """The next point. ``stage`` (rows,): how often the window share was halved; ``place`` (rows,
        n_place_draws): draws from [0, 1); ``signs`` (rows, channels, 1, 1): -1 or 1."""

    def begin(self, start: Start, draws: Draws) -> SquareState:
        point = self.first_point(start.x, draws)
        unknown = torch.full_like(point[:, 0, 0, 0], -torch.inf)
        key = draws.keys().to(point.device)
        return SquareState(**start.fields(), point=point, best=point, margin=unknown, key=key)

    def query(self, victim: Victim, state: SquareState) -> Answer:
        return victim.logits(state.point)

    def gap(self, state: SquareState) -> Tensor:
        return -state.margin

    def update(self, state: SquareState, answer: Answer) -> None:
        self.accept(state, answer)
        self.next_proposal(state)

    def next_proposal(self, state: SquareState) -> None:
        """Set ``state.point`` to the next proposal of its stream and count a step."""
        each = self.n_place_draws + state.x.shape[1]
        uniforms = uniform_at(state.key, state.step * each, each)
        state.step = state.step + 1
        state.done = state.step > self.n_queries
        self.set_proposal(state, uniforms)

    def accept(self, state: SquareState, answer: Answer) -> None:
        """Make the point the best one where its margin is higher, compared in float32."""
        value = margin(answer.logits.float(), state.y)
        better = value > state.margin
        state.margin = torch.where(better, value, state.margin)
        state.best = torch.where(better.view(-1, 1, 1, 1), state.point, state.best)

    def set_proposal(self, state: SquareState, uniforms: Tensor) -> None:
        """Set ``state.point`` to the proposal that these draws (rows, n_place_draws + channels) make."""
        # Proposals are counted from 0, and the query of step 0 was of the first point, which is none.
        stage = torch.bucketize(state.step - 1, _halved_after(state.step.device))
        signs = _signs(uniforms[:, self.n_place_draws :, None, None])
        state.point = self.propose(state, stage, uniforms[:, : self.n_place_draws], signs)


class LinfSquare(Square):
    """Square in Linf: starts from vertical stripes of +-eps; a window changes by +-2 eps in each channel."""

    n_place_draws = 2

    def first_point(self, x: Tensor, draws: Draws) -> Tensor:
        stripes = _signs(draws.uniform(x.shape[1], 1, x.shape[3]).to(x))
        return (x + self.threat.eps * stripes).clamp(*self.threat.box)

    def propose(self, state: SquareState, stage: Tensor, place: Tensor, signs: Tensor) -> Tensor:
        x, eps = state.x, self.threat.eps
        height, width = x.shape[2:]
        size = _flat_sizes(height, width, x.device)[stage]
        inside = windows(*corners(place, size, height, width), size, height, width)
        moved = state.best + inside * (2 * eps * signs)
        return moved.clamp(x - eps, x + eps).clamp(*self.threat.box)


class L1L2Square(Square):
    """Square in L2 and L1: a window receives the budget of a second one, which is reset to the clean image.

    What is added in the window is a positive and a negative peak. The first point is a mosaic of such
    windows, with sides of a fifth of the image's height.
    """

    n_place_draws = 5

    def __init__(self, threat: ThreatModel, *, n_queries: int = 5000) -> None:
        super().__init__(threat, n_queries=n_queries)
        self.power = 1 if threat.norm == "l1" else 2

    def first_point(self, x: Tensor, draws: Draws) -> Tensor:
        channels, height, width = x.shape[1:]
        if min(height, width) < 5:
            raise UnsupportedError(
                f"Square in {self.threat.norm} needs images of at least 5x5 pixels",
                where="the attack 'square'", got=f"{height}x{width}", remedy="attack in linf",
            )  # fmt: skip
        side = height // 5
        edge = (height - 5 * side) // 2
        pair = peaks(side, self.power).to(x)
        delta = torch.zeros_like(x)
        for top in range(edge, edge + height // side * side, side):
            for left in range(edge, edge + width // side * side, side):
                turned = (draws.shared(1)[:, 0] > 0.5).long().to(x.device)
                tile = pair[turned][:, None] * _signs(draws.uniform(channels, 1, 1).to(x))
                piece = delta[:, :, top : top + side, left : left + side]
                piece += tile[:, :, : piece.shape[2], : piece.shape[3]]
        return self._within(x, delta)

    def propose(self, state: SquareState, stage: Tensor, place: Tensor, signs: Tensor) -> Tensor:
        channels, height, width = state.x.shape[1:]
        sizes, pairs = _peaked(height, width, self.power, state.x.device)
        size = sizes[stage]
        top, left = corners(place[:, :4], size, height, width)
        here, there = windows(top, left, size, height, width).split(1, 1)
        either = torch.maximum(here, there)
        turned = place[:, 4] > 0.5
        peak = lookup(pairs, 2 * stage + turned, top[:, 0], left[:, 0], height, width)
        delta = state.best - state.x
        mass = self._mass(delta)
        taken = (mass * either).sum((2, 3), keepdim=True)
        free = (self.threat.eps**self.power - mass.sum((1, 2, 3), keepdim=True)).clamp_min(0)
        before = delta / (self._root((mass * here).sum((2, 3), keepdim=True)) + TINY)
        added = (peak * signs + before) * here
        wanted = self._root(free / channels + taken)
        if self.power == 1:
            wanted = wanted * channels  # as in the reference; the projection removes any excess
        length = self._root(self._mass(added).sum((2, 3), keepdim=True)) + TINY
        return self._within(state.x, delta * (1 - either) + added * (wanted / length))

    def _within(self, x: Tensor, delta: Tensor) -> Tensor:
        """x + delta within budget and box: scaled to norm eps in L2, projected in L1."""
        eps, box = self.threat.eps, self.threat.box
        if self.power == 1:
            return x + shrink_to_l1_box(x, delta, eps * (1 - 1e-6), box)
        length = self._mass(delta).sum((1, 2, 3), keepdim=True).sqrt() + TINY
        return (x + delta * (eps / length)).clamp(*box)

    def _mass(self, delta: Tensor) -> Tensor:
        return delta.abs() if self.power == 1 else delta * delta

    def _root(self, mass: Tensor) -> Tensor:
        return mass if self.power == 1 else mass.sqrt()


def square(threat: ThreatModel, *, n_queries: int = 5000) -> Square:
    """Square in the norm of the threat."""
    kind = LinfSquare if threat.norm == "linf" else L1L2Square
    return kind(threat, n_queries=n_queries)


def window_sizes(height: int, width: int) -> list[int]:
    """The side of windows that cover P_INIT of the pixels, that share halved 0, 1, 2, ... times."""
    return [round(math.sqrt(P_INIT / 2**k * height * width)) for k in range(len(HALVED_AFTER) + 1)]


def peaks(size: int, power: int) -> Tensor:
    """The perturbation of a window, (2, size, size), of norm 1: the positive peak above the negative one,
    and left of it (Andriushchenko et al. 2020, section 3.4). ``power``: 2 for L2, 1 for L1."""
    upper = size // 2
    whole = torch.cat([_peak(upper, size, power), -_peak(size - upper, size, power)])
    whole = whole / _length(whole, power)
    return torch.stack([whole, whole.T])


def _peak(height: int, width: int, power: int) -> Tensor:
    """A peak in the centre, (height, width), of norm 1: ring r has the value sum over k > r of 1 / k^2 in
    L2 and 1 / k^4 in L1."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    total = torch.zeros(height, width)
    for k in range(max(height, width) // 2 + 1):
        total += (ring <= k) / (k + 1.0) ** (4 if power == 1 else 2)
    return total / _length(total, power)


def _length(delta: Tensor, power: int) -> Tensor:
    return delta.abs().sum() if power == 1 else (delta**2).sum().sqrt()


def corners(place: Tensor, size: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The top and left of k windows for each row, both (rows, k), from pairs of draws (rows, 2 k)."""
    free = torch.stack([height - size, width - size], 1)
    corner = (place.unflatten(1, (-1, 2)) * free[:, None]).long()
    return corner[:, :, 0], corner[:, :, 1]


def windows(top: Tensor, left: Tensor, size: Tensor, height: int, width: int) -> Tensor:
    """Masks of the windows, (rows, k, height, width), from their top and left (rows, k).

    As floats, since torch is several times slower with booleans on a CPU.
    """
    down, right = _offsets(top, height), _offsets(left, width)
    size = size[:, None, None]
    down = ((down >= 0) & (down < size)).float()
    right = ((right >= 0) & (right < size)).float()
    return down[..., :, None] * right[..., None, :]


def lookup(table: Tensor, kind: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """``table[kind]`` of side x side pixels placed with its corner at each row's top and left, (rows, 1,
    height, width); its edges are repeated around it. ``table``: (kinds, side, side)."""
    side = table.shape[1]
    down = _offsets(top, height).clamp(0, side - 1) + kind[:, None] * side
    right = _offsets(left, width).clamp(0, side - 1)
    return table.flatten()[down[:, :, None] * side + right[:, None, :]][:, None]


def _offsets(place: Tensor, side: int) -> Tensor:
    return torch.arange(side, device=place.device) - place[..., None]


def _signs(numbers: Tensor) -> Tensor:
    return (numbers * 2 - 1).sign()


@lru_cache
def _halved_after(device: torch.device) -> Tensor:
    return torch.tensor(HALVED_AFTER, device=device)


@lru_cache
def _flat_sizes(height: int, width: int, device: torch.device) -> Tensor:
    sizes = [min(max(size, 1), height, width) for size in window_sizes(height, width)]
    return torch.tensor(sizes, device=device)


@lru_cache
def _peaked(height: int, width: int, power: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The window sizes, (stages,), and their perturbations, (2 * stages, side, side), padded with zeros."""
    odd = [max(size, 3) // 2 * 2 + 1 for size in window_sizes(height, width)]
    sizes = [min(size, height, width) for size in odd]
    table = torch.zeros(len(sizes), 2, max(sizes), max(sizes))
    for k, size in enumerate(sizes):
        table[k, :, :size, :size] = peaks(size, power)
    return torch.tensor(sizes, device=device), table.flatten(0, 1).to(device)
