"""Charts as inline SVG in the colours of the page's theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 40
DASHES = ("", "6 3", "2 3", "8 3 2 3")
COLOURS = 8


def style(index: int) -> str:
    """Colour and dash of the index-th series; the dash changes whenever the colours repeat."""
    dash = DASHES[(index // COLOURS) % len(DASHES)]
    return f"stroke:var(--series-{index % COLOURS})" + (f";stroke-dasharray:{dash}" if dash else "")


@dataclass(frozen=True)
class Series:
    """A line of points (x, y), optionally with an interval of y at each; ``index`` is its colour."""

    name: str
    index: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    markers: bool = True


@dataclass(frozen=True)
class Chart:
    """A line chart; ``described`` is its text alternative."""

    title: str
    described: str
    x_label: str
    y_label: str
    series: list[Series] = field(default_factory=list)
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_powers: bool = False
    """Whether x holds logarithms to the base 10; ticks are then at 1, 2 and 5 times the powers of 10."""
    zero_line: bool = False
    diagonal: bool = False
    width: int = 440
    height: int = 280

    def svg(self) -> str:
        """The chart as an <svg> element."""
        xs = _open(self.x_range or _range([x for s in self.series for x in s.x]))
        ends = [v for s in self.series for v in (*s.y, *s.low, *s.high)] + ([0.0] if self.zero_line else [])
        frame = _Frame(xs, _open(self.y_range or _range(ends, 0.05)), self.width, self.height)
        steps = log_ticks(*xs) if self.x_powers else [(x, _number(x)) for x in ticks(*xs)]
        parts = [frame.axes(self.x_label, self.y_label, steps)]
        if self.zero_line:
            parts.append(frame.line([xs[0], xs[1]], [0, 0], "reference"))
        if self.diagonal:
            parts.append(frame.line(list(xs), list(xs), "reference"))
        lines = []
        # staggered, so that intervals at one x can be told apart
        for place, series in enumerate(self.series):
            lines.append(_draw(frame, series, 1.2 * (place - (len(self.series) - 1) / 2)))
        parts.append(frame.clipped("".join(lines)))
        return element(self.title, self.described, self.width, self.height, "".join(parts))


def _open(ends: tuple[float, float]) -> tuple[float, float]:
    """The range, widened where its ends are equal."""
    low, high = ends
    return (low, high) if high > low else (low, low + 1)


def element(title: str, described: str, width: int, height: int, content: str, name: str = "chart") -> str:
    """An <svg> that screen readers announce with its title and description."""
    return (
        f'<svg class="{name}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"{title}. {described}")}">{content}</svg>'
    )


def _draw(frame: _Frame, series: Series, shift: float) -> str:
    parts = []
    if series.low:
        for x, low, high in zip(series.x, series.low, series.high, strict=True):
            at = frame.px(x) + shift
            parts.append(
                f'<line class="whisker" style="{style(series.index)}" x1="{at:.1f}" x2="{at:.1f}" '
                f'y1="{frame.py(low):.1f}" y2="{frame.py(high):.1f}"/>'
            )
    shift = shift if series.low else 0.0
    parts.append(frame.line(series.x, series.y, "series", style(series.index), shift))
    if series.markers:
        parts += [
            marker(series.index, frame.px(x) + shift, frame.py(y), 2.8)
            for x, y in zip(series.x, series.y, strict=True)
        ]
    return f"<g><title>{escape(series.name)}</title>{''.join(parts)}</g>"


def marker(index: int, x: float, y: float, r: float, name: str = "dot") -> str:
    """A dot of the ``index``-th model; its shape changes whenever the colours repeat."""
    how = f'class="{name}" style="fill:var(--series-{index % COLOURS})"'
    shape = index // COLOURS % 4
    if shape == 0:
        return f'<circle {how} cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"/>'
    corners = (
        [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        [(0, -1.2), (1.2, 1), (-1.2, 1)],
    )
    points = " ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in corners[shape - 1])
    return f'<polygon {how} points="{points}"/>'


@dataclass(frozen=True)
class _Frame:
    """Maps data to pixels of the plot area."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int

    def px(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT)

    def py(self, value: float) -> float:
        low, high = self.y
        return self.height - BOTTOM - (value - low) / (high - low) * (self.height - TOP - BOTTOM)

    def line(
        self, x: Sequence[float], y: Sequence[float], name: str, how: str = "", shift: float = 0.0
    ) -> str:
        points = " ".join(f"{self.px(a) + shift:.1f},{self.py(b):.1f}" for a, b in zip(x, y, strict=True))
        return f'<polyline class="{name}" style="{how}" points="{points}"/>'

    def clipped(self, content: str) -> str:
        """Content that is cut off a marker's width outside the plot area."""
        x, y, width, height = (
            LEFT - 5,
            TOP - 5,
            self.width - LEFT - RIGHT + 10,
            self.height - TOP - BOTTOM + 10,
        )
        box = f'x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{x} {y} {width} {height}"'
        return f'<svg {box} overflow="hidden">{content}</svg>'

    def axes(self, x_label: str, y_label: str, steps: list[tuple[float, str]]) -> str:
        right, floor = self.width - RIGHT, self.height - BOTTOM
        parts = []
        for tick in ticks(*self.y):
            y = self.py(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(text(LEFT - 6, y + 4, _number(tick), "end"))
        parts += [text(self.px(x), floor + 16, label) for x, label in steps]
        parts.append(text((LEFT + right) / 2, self.height - 5, x_label))
        parts.append(
            f'<g transform="translate(12 {(TOP + floor) / 2}) rotate(-90)">{text(0, 0, y_label)}</g>'
        )
        return "".join(parts)


def text(x: float, y: float, content: str, anchor: str = "middle") -> str:
    """A <text> element."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """About 4 to 7 round numbers in [low, high].

    >>> ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """(logarithm, label) of 1, 2 and 5 times the powers of 10 in 10^[low, high]; over 2 decades powers only.

    >>> [label for _, label in log_ticks(0, 1)]
    ['1', '2', '5', '10']
    """
    factors = (1, 2, 5) if high - low <= 2 else (1,)
    values = [m * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for m in factors]
    return [(math.log10(v), f"{v:g}") for v in values if low - 1e-9 <= math.log10(v) <= high + 1e-9]


def _range(values: Sequence[float], margin: float = 0.03) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * margin
    return low - room, high + room


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def reliability_svg(
    name: str, described: str, confidence: Sequence[float], accuracy: Sequence[float], share: Sequence[float]
) -> str:
    """A reliability diagram: accuracy against confidence; a dot's area is its bin's share of samples."""
    size, pad, edge = 190, 26, 14

    def at(value: float) -> float:
        return value * (size - pad - edge)

    parts = [
        f'<line class="reference" x1="{pad}" y1="{size - pad}" x2="{size - edge}" y2="{edge}"/>',
        f'<path class="frame" d="M{pad} {edge}V{size - pad}H{size - edge}"/>',
        *(text(pad - 5, y, tick, "end") for y, tick in ((edge + 4, "1"), (size - pad, "0"))),
        text(pad, size - pad + 14, "0", "start"),
        text(size - edge, size - pad + 14, "1", "end"),
    ]
    for c, a, s in zip(confidence, accuracy, share, strict=True):
        x, y = pad + at(c), size - pad - at(a)
        parts.append(
            f'<line class="gap" x1="{x:.1f}" x2="{x:.1f}" y1="{size - pad - at(c):.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<circle class="bin" cx="{x:.1f}" cy="{y:.1f}" r="{2 + 9 * math.sqrt(s):.1f}"/>')
    return element(name, described, size, size, "".join(parts), "chart small")
