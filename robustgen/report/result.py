"""The value of ``robustgen.evaluate``: a finished report, as a data frame, as text and in a notebook."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from robustgen.report.content import Summary
from robustgen.report.render import render
from robustgen.report.summary import headline
from robustgen.types import Metric

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Report:
    """The report in a folder. ``content``: of summary.json; ``failures``: the errors of failed models.

    ``print`` and notebooks show its main table.
    """

    folder: Path
    content: Summary = field(repr=False)
    failures: dict[str, str] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """A row for each metric with the columns of summary.csv: model, evaluation, variant, metric, value,
        ci_low, ci_high (of the 95 % interval), n, unit, higher_is_better."""
        import pandas as pd

        return pd.DataFrame(self.content["metrics"], columns=[f.name for f in fields(Metric)])

    def flags(self) -> pd.DataFrame:
        """The doubts about these numbers, errors first: model, evaluation, flag, severity, message."""
        import pandas as pd

        return pd.DataFrame(
            self.content["flags"], columns=["model", "evaluation", "flag", "severity", "message"]
        )

    def page(self) -> Path:
        """Write index.html; returns its path."""
        return render(self.folder)

    def __str__(self) -> str:
        head, rows = headline(self.content)
        cells = [[cell.replace("\n", "-") for cell in row] for row in (head, *rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        return "\n".join(line.rstrip() for line in [*lines, *self._notes()])

    def _notes(self) -> list[str]:
        serious = [flag for flag in self.content["flags"] if flag["severity"] != "info"]
        notes = [f"{f['severity']}: {f['model']} {f['evaluation']}: {f['message']}" for f in serious]
        return [*notes, *(f"{model} was not finished: {error}" for model, error in self.failures.items())]

    def _repr_html_(self) -> str:
        head, rows = headline(self.content)
        titles = "".join(f"<th scope='col'>{escape(cell.replace(chr(10), '-'))}</th>" for cell in head)
        body = "".join(
            f"<tr><th scope='row' style='text-align: left'>{escape(first)}</th>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in others)
            + "</tr>"
            for first, *others in rows
        )
        notes = "".join(f"<li>{escape(note)}</li>" for note in self._notes())
        return (
            f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
            f"<ul>{notes}</ul><p>{escape(str(self.folder))}</p>"
        )
