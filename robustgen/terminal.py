"""Output of the command line: progress and messages on stderr, results on stdout, which can be piped.

rich omits colours if NO_COLOR is set or the output is not a terminal.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from robustgen.places import display_path

if TYPE_CHECKING:
    from robustgen.engine import Step
    from robustgen.report.content import Summary

INTERRUPTED = 130
"""The exit code of a command stopped by Ctrl-C, as in shells."""

console = Console(stderr=True, highlight=False)


class Commands(TyperGroup):
    """The commands; Ctrl-C stops one with a message on how to continue."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            console.print("\nstopped; what is finished is kept, and the same command continues from there")
            raise typer.Exit(INTERRUPTED) from None


EXAMPLES = {
    "robustgen": ("report softmax-digits --n 50", "check mine.py:Net", "list protocols"),
    "report": (
        "report",
        "report '*-digits' --protocol linf-0.15 --out out/zoo",
        "report mine.py:Net softmax-digits --n 50 --out out/mine",
        "report out/softmax-digits --protocol clean",
        "report mine.py:Net --data imagefolder:pictures --protocol mine.yaml",
        "report --n 50 --quiet --json > summary.json",
    ),
    "train": ("train models/softmax-digits/recipe.yaml --out out/softmax-digits",),
    "transfer": ("transfer out",),
    "check": ("check mine.py:Net", "check torchvision:resnet18 --data cifar10"),
    "verify": ("verify out", "verify out --add mine.npz --model softmax-digits"),
    "compare": ("compare out/monday out/tuesday --out out/both",),
    "export": ("export out",),
    "list": ("list models", "list attacks --json"),
    "show": ("show softmax-digits", "show mine.yaml"),
}
"""Examples to copy, which the --help of each command ends with."""


def examples(command: str) -> str:
    """The examples of a command, one line each."""
    return "\n\n".join(["Examples:", *(f"robustgen {example}" for example in EXAMPLES[command])])


class Progress:
    """Shows progress on stderr: a bar for each model, or a line when it is done if that is not a terminal.

    ``verbose``: a line for each chunk instead.
    """

    def __init__(self, quiet: bool, verbose: bool = False) -> None:
        self.quiet = quiet
        self.lines = verbose and not quiet

    def __enter__(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"), console=console,
            disable=self.quiet or self.lines or not console.is_terminal,
        )  # fmt: skip
        self.tasks: dict[str, Any] = {}
        self.bar.start()
        return self._show

    def _show(self, step: Step) -> None:
        if step.model not in self.tasks:
            self.tasks[step.model] = self.bar.add_task(step.model, total=step.total, now="")
        now = f"{step.chunk.evaluation} {step.chunk.stop}" if step.chunk else ""
        now += f", {100 * step.correct / step.labelled:.1f} % right" if step.labelled else ""
        over = step.done == step.total
        self.bar.update(self.tasks[step.model], completed=step.done, now="" if over else now)
        if self.lines and now:
            console.print(f"{step.model}: {step.done} of {step.total}: {now}", markup=False, soft_wrap=True)
        if over and not self.quiet and not console.is_terminal:
            computed = (
                f"{step.total - step.failed} chunks computed" if step.total else "nothing left to compute"
            )
            computed += f", {step.failed} failed" if step.failed else ""
            console.print(f"{step.model}: {computed}", markup=False, soft_wrap=True)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


def print_table(content: Summary) -> None:
    """Print the main table of a summary on stdout."""
    from robustgen.report.summary import headline

    columns, rows = headline(content)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:  # as Text, so that brackets in names are no markup
        table.add_column(Text(column), justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def print_path(page: Path) -> None:
    """Print the path of a page on stderr."""
    console.print(f"\n{display_path(page)}", style="bold", markup=False, soft_wrap=True)
