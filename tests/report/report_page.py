"""What a reader of index.html sees, without the code that wrote it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = ("meta", "link", "img", "br")
NOT_SHARES = (
    "nll", "brier", "brier_reliability", "brier_resolution", "brier_uncertainty", "temperature",
    "bits_per_dim", "psnr", "psnr_gain",
)  # fmt: skip


@dataclass
class Svg:
    """A chart: its text alternative, the radii of its dots and the points of its lines by their names."""

    words: str
    radii: list[float] = field(default_factory=list)
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


class Page(HTMLParser):
    """The visible content.

    ``cells``: of every element with a data-value its data attributes, those of its row, and its texts:
    ``text``, and of its parts ``text-value``, ``text-interval`` and ``text-quiet``; ``charts`` by title;
    ``heat``: of the heat map by (model, type);
    ``reading``: the pairs of "In short"; ``flags``: the texts of a doubt's paragraphs.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[dict[str, str]] = []
        self.charts: dict[str, Svg] = {}
        self.heat: dict[tuple[str, str], float] = {}
        self.reading: list[tuple[str, str]] = []
        self.flags: list[list[str]] = []
        self._row: dict[str, str] = {}
        self._row_title = ""
        self._path: list[tuple[str, str]] = []
        self._cell: dict[str, str] | None = None
        self._chart = Svg("")
        self._line = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        data = {key.removeprefix("data-"): value for key, value in given.items() if key.startswith("data-")}
        if tag not in VOID:
            self._path.append((tag, given.get("class", "")))
        if tag == "tr":
            self._row = data
            self._row_title = ""
        if "value" in data:
            self._cell = self._row | data
            self.cells.append(self._cell)
        if "heat" in data:
            self.heat[data["model"], self._row_title] = float(data["heat"])
        if tag == "svg" and "aria-label" in given:
            title, _, words = given["aria-label"].partition(". ")
            self._chart = self.charts[title] = Svg(words)
        if tag == "circle":
            self._chart.radii.append(float(given["r"]))
        if tag == "polyline" and given["class"] == "series":
            points = [tuple(map(float, pair.split(","))) for pair in given["points"].split()]
            self._chart.lines[self._line] = points  # type: ignore[assignment]
        if tag == "li" and ("ul", "flags") in self._path:
            self.flags.append([])
        if tag == "p" and ("ul", "flags") in self._path:
            self.flags[-1].append("")

    handle_startendtag = handle_starttag  # svg's lines and dots: their place in the path is ended below

    def handle_endtag(self, tag: str) -> None:
        while self._path and self._path.pop()[0] != tag:
            pass
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, text: str) -> None:
        tag, name = self._path[-1] if self._path else ("", "")
        if self._cell is not None and name != "unseen":
            self._cell["text"] = self._cell.get("text", "") + text
            if tag == "span":
                self._cell[f"text-{name.split()[0]}"] = text
        if tag == "title":
            self._line = text
        if tag == "th":
            self._row_title = text
        if ("dl", "reading") in self._path and tag == "dt":
            self.reading.append((text, ""))
        if ("dl", "reading") in self._path and tag == "dd":
            self.reading[-1] = (self.reading[-1][0], self.reading[-1][1] + text)
        if ("ul", "flags") in self._path and any(t == "p" for t, _ in self._path):
            self.flags[-1][-1] += text


def plain(text: str) -> list[tuple[Any, int]]:
    """The numbers of a text, each with how many digits stand after its point."""
    found = re.findall(r"(?<![\w.])[+−]?\d[\d,]*(?:\.\d+)?(?![\w])", text.replace(", ", " , "))
    bare = [number.replace("−", "-").replace(",", "") for number in found]
    return [(float(number), len(number.partition(".")[2])) for number in bare]


def shows(number: tuple[Any, int], metric: dict[str, Any], value: float) -> bool:
    """Whether a number of the page is this value of a metric, rounded, in percent where it is a share."""
    share = metric["metric"] not in NOT_SHARES
    expected = 100 * value if share else value
    given, digits = number
    wide = max(abs(100 * metric[end]) for end in ("value", "ci_low", "ci_high") if end in metric)
    enough = digits >= 1 or (metric["metric"] == "guidance_gain" and wide >= 100)
    return enough and abs(given - expected) <= 0.5000001 * 10.0**-digits + 1e-9
