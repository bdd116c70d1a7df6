"""reports/index.html: what the published reports of a folder say, a table each, with the way to each page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustgen.disk import atomic, read_json
from robustgen.errors import UserError
from robustgen.report.columns import Column
from robustgen.report.flags import Doubts, doubts_of, flag_groups
from robustgen.report.render import templates
from robustgen.report.tables import MainTable, Row, main_table

SHOWN = ("accuracy", "robust_accuracy", "corruption_accuracy", "ece", "psnr_gain")
"""The metrics of a leaderboard; of attacks, the worst case alone."""


@dataclass(frozen=True)
class Standing:
    """One report: where it is, what it was made on, and the columns of its main table that count here."""

    folder: str
    content: dict[str, Any]
    columns: list[Column]
    doubts: Doubts
    kinds: list[tuple[str, list[Row]]]

    @property
    def asked(self) -> int:
        """How many test pictures every model was asked about, at most."""
        size = int(self.content["data"]["size"])
        return min(self.content["n"] or size, size)


def leaderboard(reports: Path) -> Path:
    """Write REPORTS/index.html over every report below ``reports``; returns its path.

    Different data, protocols and numbers of pictures are tables of their own: nothing is ranked across them.
    """
    folders = sorted(path.parent for path in reports.glob("*/summary.json"))
    if not folders:
        raise UserError("there is no report here", where=reports, remedy="'make zoo', then 'make site'")
    standings = [_standing(folder) for folder in folders]
    page = reports / "index.html"
    text = templates().get_template("leaderboard.html.j2").render(standings=standings)
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def _standing(folder: Path) -> Standing:
    content = read_json(folder / "summary.json")
    table: MainTable = main_table(content)
    places = [place for place, column in enumerate(table.columns) if _counts(column)]
    kinds = [
        (kind, [Row(model, [cells[place] for place in places]) for model, cells in rows])
        for kind, rows in table.kinds
    ]
    shown = [table.columns[place] for place in places]
    return Standing(folder.name, content, shown, doubts_of(content, flag_groups(content)), kinds)


def _counts(column: Column) -> bool:
    key = column.key
    if key.metric == "robust_accuracy":
        return key.evaluation.startswith("worst-")
    return key.metric in SHOWN and key.evaluation in ("clean", "corruptions", "gradients")
