"""The Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search, no gradients.

Every question changes a square window of the best point so far, and the change stays where the
margin rises. In L1 as in Croce and Hein 2021 (arXiv:2103.01208). Where papers and AutoAttack's code
differ, the code is followed: a window's corner is drawn below side - size, so that no window smaller
than the picture reaches the last row and column.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from robustgen.attacks.losses import margin
from robustgen.attacks.search import Search, Start, State
from robustgen.attacks.victim import Answer, Victim
from robustgen.draws import Draws, uniform_at
from robustgen.errors import UnsupportedError
from robustgen.threat import ThreatModel

P_INIT = 0.8  # the share of a picture's pixels that the first windows have
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # the last proposals of each share
NEWTON_STEPS = 10
TINY = 1e-12


@dataclass
class Squares(State):
    """Rows of Square: the best point so far, its margin, and the streams that proposals come from."""

    best: Tensor
    margin: Tensor
    key: Tensor


class Square(Search[Squares], ABC):
    """Square with ``n_queries`` proposals after the first point.

    A proposal takes ``placing`` draws for its place, and one a channel for its signs. What counts as
    broken is for ``search.run`` to say; the reference takes a margin of exactly 0 for a success too.
    """

    placing: int

    def __init__(self, threat: ThreatModel, *, n_queries: int = 5000) -> None:
        self.threat = threat
        self.n_queries = self.length = n_queries

    @abstractmethod
    def start(self, x: Tensor, draws: Draws) -> Tensor:
        """The first point."""

    @abstractmethod
    def propose(self, state: Squares, stage: Tensor, place: Tensor, signs: Tensor) -> Tensor:
        """The next point. ``stage`` (rows,) says how often the windows' share was halved, ``place`` (rows,
        placing) are draws from [0, 1), ``signs`` (rows, channels, 1, 1) are -1 or 1."""

    def begin(self, start: Start, draws: Draws) -> Squares:
        point = self.start(start.x, draws)
        unknown = torch.full_like(point[:, 0, 0, 0], -torch.inf)
        key = draws.keys().to(point.device)
        return Squares(**start.fields(), point=point, best=point, margin=unknown, key=key)

    def ask(self, victim: Victim, state: Squares) -> Answer:
        return victim.logits(state.point)

    def lacking(self, state: Squares) -> Tensor:
        return -state.margin

    def step(self, state: Squares, answer: Answer) -> None:
        self.accept(state, answer)
        self.go_on(state)

    def go_on(self, state: Squares) -> None:
        """Take the next proposal for ``state.point``, and count a step."""
        each = self.placing + state.x.shape[1]
        numbers = uniform_at(state.key, state.step * each, each)
        state.step = state.step + 1
        state.over = state.step > self.n_queries
        self.move(state, numbers)

    def accept(self, state: Squares, answer: Answer) -> None:
        """Take the point for the best one where its margin is higher, compared in float32."""
        value = margin(answer.logits.float(), state.y)
        better = value > state.margin
        state.margin = torch.where(better, value, state.margin)
        state.best = torch.where(better.view(-1, 1, 1, 1), state.point, state.best)

    def move(self, state: Squares, numbers: Tensor) -> None:
        """Take the proposal that these draws (rows, placing + channels) make for ``state.point``."""
        # The proposals are counted from 0, the questions too, and the first of these is no proposal.
        stage = torch.bucketize(state.step - 1, _halved_after(state.step.device))
        signs = _signs(numbers[:, self.placing :, None, None])
        state.point = self.propose(state, stage, numbers[:, : self.placing], signs)


class FlatSquare(Square):
    """Square in Linf: windows move by 2 eps up or down in each channel, from stripes of eps."""

    placing = 2

    def start(self, x: Tensor, draws: Draws) -> Tensor:
        stripes = _signs(draws.uniform(x.shape[1], 1, x.shape[3]).to(x))
        return (x + self.threat.eps * stripes).clamp(*self.threat.box)

    def propose(self, state: Squares, stage: Tensor, place: Tensor, signs: Tensor) -> Tensor:
        x, eps = state.x, self.threat.eps
        height, width = x.shape[2:]
        size = _flat_sizes(height, width, x.device)[stage]
        inside = windows(*corners(place, size, height, width), size, height, width)
        moved = state.best + inside * (2 * eps * signs)
        return moved.clamp(x - eps, x + eps).clamp(*self.threat.box)


class PeakedSquare(Square):
    """Square in L2 and L1: a window takes over the length of a second one, which becomes clean.

    What is added in the window has a peak up and one down. The first point is a mosaic of such
    windows, whose sides are a fifth of the picture's height.
    """

    placing = 5

    def __init__(self, threat: ThreatModel, *, n_queries: int = 5000) -> None:
        super().__init__(threat, n_queries=n_queries)
        self.power = 1 if threat.norm == "l1" else 2

    def start(self, x: Tensor, draws: Draws) -> Tensor:
        channels, height, width = x.shape[1:]
        if min(height, width) < 5:
            raise UnsupportedError(
                f"Square in {self.threat.norm} needs pictures of at least 5x5 pixels",
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

    def propose(self, state: Squares, stage: Tensor, place: Tensor, signs: Tensor) -> Tensor:
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
            wanted = wanted * channels  # as in the reference; the projection takes back what is too much
        length = self._root(self._mass(added).sum((2, 3), keepdim=True)) + TINY
        return self._within(state.x, delta * (1 - either) + added * (wanted / length))

    def _within(self, x: Tensor, delta: Tensor) -> Tensor:
        """x + delta made as long as the budget, in the box: scaled in L2, projected in L1."""
        eps, box = self.threat.eps, self.threat.box
        if self.power == 1:
            return x + shrunk(x, delta, eps * (1 - 1e-6), box)
        length = self._mass(delta).sum((1, 2, 3), keepdim=True).sqrt() + TINY
        return (x + delta * (eps / length)).clamp(*box)

    def _mass(self, delta: Tensor) -> Tensor:
        return delta.abs() if self.power == 1 else delta * delta

    def _root(self, mass: Tensor) -> Tensor:
        return mass if self.power == 1 else mass.sqrt()


def square(threat: ThreatModel, *, n_queries: int = 5000) -> Square:
    """Square in the norm of the threat."""
    kind = FlatSquare if threat.norm == "linf" else PeakedSquare
    return kind(threat, n_queries=n_queries)


def window_sizes(height: int, width: int) -> list[int]:
    """The sides of windows with the share P_INIT of the pixels, halved 0, 1, 2, ... times."""
    return [round(math.sqrt(P_INIT / 2**k * height * width)) for k in range(len(HALVED_AFTER) + 1)]


def peaks(size: int, power: int) -> Tensor:
    """A window's two peaks, (2, size, size), of length 1 in the norm of this power: up above down, and the
    same turned on its side, up left of down (Andriushchenko et al. 2020, section 3.4)."""
    upper = size // 2
    whole = torch.cat([_peak(upper, size, power), -_peak(size - upper, size, power)])
    whole = whole / _length(whole, power)
    return torch.stack([whole, whole.T])


def _peak(height: int, width: int, power: int) -> Tensor:
    """A peak in the middle that falls off by rings, (height, width), of length 1: ring r has the sum of
    1 / k^2 in L2 and 1 / k^4 in L1 over k > r."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    total = torch.zeros(height, width)
    for k in range(max(height, width) // 2 + 1):
        total += (ring <= k) / (k + 1.0) ** (4 if power == 1 else 2)
    return total / _length(total, power)


def _length(delta: Tensor, power: int) -> Tensor:
    return delta.abs().sum() if power == 1 else (delta**2).sum().sqrt()


def corners(place: Tensor, size: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where k windows of each row begin: top and left, both (rows, k), from draws (rows, 2 k) in pairs."""
    free = torch.stack([height - size, width - size], 1)
    corner = (place.unflatten(1, (-1, 2)) * free[:, None]).long()
    return corner[:, :, 0], corner[:, :, 1]


def windows(top: Tensor, left: Tensor, size: Tensor, height: int, width: int) -> Tensor:
    """1 where a pixel lies in a row's window, 0 elsewhere, (rows, k, height, width); top and left (rows, k).

    In numbers, for on a CPU torch is several times slower with booleans.
    """
    down, right = _offsets(top, height), _offsets(left, width)
    size = size[:, None, None]
    down = ((down >= 0) & (down < size)).float()
    right = ((right >= 0) & (right < size)).float()
    return down[..., :, None] * right[..., None, :]


def lookup(table: Tensor, kind: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """``table`` (kinds, side, side) laid with its corner at the rows' own places, (rows, 1, height, width).

    Around it stands what is at its edges.
    """
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
    """The sizes of windows, (stages,), and their peaks, (2 * stages, side, side) with zeros beside them."""
    odd = [max(size, 3) // 2 * 2 + 1 for size in window_sizes(height, width)]
    sizes = [min(size, height, width) for size in odd]
    table = torch.zeros(len(sizes), 2, max(sizes), max(sizes))
    for k, size in enumerate(sizes):
        table[k, :, :size, :size] = peaks(size, power)
    return torch.tensor(sizes, device=device), table.flatten(0, 1).to(device)


def shrunk(x: Tensor, delta: Tensor, eps: float, box: tuple[float, float]) -> Tensor:
    """What is nearest to delta (batch, ...) with a sum of absolute values of at most eps, x + it in the box.

    Coordinate i becomes sign(d_i) clip(|d_i| - c, 0, room_i), as in ``projections.project_l1_box``; that
    sorts for the c of each picture, here Newton's method finds it, kept between bounds, many times
    faster. What is left above eps after the last step is scaled away.
    """
    length = delta.abs()
    room = torch.where(delta > 0, box[1] - x, x - box[0]).clamp_min(0)
    # clip(|d| - c, 0, room) is the difference of (|d| - c)+ and (|d| - room - c)+
    both = torch.stack([length, length - room], 1).flatten(2)
    low, high = torch.zeros_like(both[:, 0, 0]), both[:, 0].amax(1)
    c = low
    for _ in range(NEWTON_STEPS):
        above = (both - c[:, None, None]).clamp_min_(0)
        total, falling = above.sum(2), above.sign_().sum(2)
        excess = total[:, 0] - total[:, 1] - eps
        over = excess > 0
        low, high = torch.where(over, c, low), torch.where(over, high, c)
        c = c + excess / (falling[:, 0] - falling[:, 1]).clamp_min(1)
        c = torch.where(torch.where(over, c < high, c > low), c, (low + high) / 2)
    move = (length - c.view(-1, 1, 1, 1)).clamp_min_(0).minimum(room)
    fits = (eps / move.flatten(1).sum(1).clamp_min(eps)).view(-1, 1, 1, 1)
    return (move * fits).copysign(delta)
