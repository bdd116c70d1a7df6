"""reports/index.html: a table for each published report, with a link to its page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustgen.disk import atomic, read_json
from robustgen.errors import UserError
from robustgen.report.columns import Column
from robustgen.report.content import Summary, asked
from robustgen.report.flags import Doubts, doubts_of, flag_groups
from robustgen.report.render import templates
from robustgen.report.tables import MainTable, Row, main_table

SHOWN = ("accuracy", "robust_accuracy", "corruption_accuracy", "ece", "psnr_gain")
"""The metrics of a leaderboard; robust accuracy as the worst case only."""


@dataclass(frozen=True)
class Standing:
    """One report: its folder, its summary, and the columns and rows of its main table that are shown here."""

    folder: str
    content: Summary
    columns: list[Column]
    doubts: Doubts
    kinds: list[tuple[str, list[Row]]]

    @property
    def asked(self) -> int:
        """How many test pictures every model was asked about, at most."""
        return asked(self.content)


def leaderboard(reports: Path) -> Path:
    """Write REPORTS/index.html, a table for each report below ``reports``; returns its path.

    Nothing is ranked across reports, which differ in data, protocol or number of pictures.
    """
    folders = sorted(path.parent for path in reports.glob("*/summary.json"))
    if not folders:
        raise UserError(
            "there is no report here", where=reports, expected="folders with a summary.json",
            remedy="run 'make zoo', then 'make site'",
        )  # fmt: skip
    standings = [_standing(folder) for folder in folders]
    page = reports / "index.html"
    text = templates().get_template("leaderboard.html.j2").render(standings=standings)
    with atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page


def _standing(folder: Path) -> Standing:
    content = read_json(folder / "summary.json")
    table: MainTable = main_table(content)
    places = [place for place, column in enumerate(table.columns) if _is_shown(column)]
    kinds = [
        (kind, [Row(model, [cells[place] for place in places]) for model, cells in rows])
        for kind, rows in table.kinds
    ]
    shown = [table.columns[place] for place in places]
    return Standing(folder.name, content, shown, doubts_of(content, flag_groups(content)), kinds)


def _is_shown(column: Column) -> bool:
    key = column.key
    if key.metric == "robust_accuracy":
        return key.evaluation.startswith("worst-")
    return key.metric in SHOWN and key.evaluation in ("clean", "corruptions", "gradients")
