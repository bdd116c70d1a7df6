"""``make site``: publish the zoo's reports, rebuild each from its stored rows, and index them in reports/.

Adversarial pictures stay behind for their size; whoever wants to verify them runs ``make zoo``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from robustgen.disk import read_json
from robustgen.report.leaderboard import leaderboard
from robustgen.report.render import render
from robustgen.report.summary import gather, summarise

SOURCE, TARGET = Path("out/zoo"), Path("reports")


def publish(source: Path, target: Path) -> None:
    """Copy one finished report."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("adversarial", "*.tmp"))


def rebuild(folder: Path) -> int:
    """Summary and page of a published report from its rows; returns its size in bytes."""
    runs, n = gather([folder], folder)
    summarise(folder, runs, n, str(read_json(folder / "summary.json")["command"]))
    render(folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> int:
    """Publish the zoo's finished reports beside those that are published already."""
    for summary in sorted(SOURCE.glob("*/summary.json")):
        publish(summary.parent, TARGET / summary.parent.name)
    folders = sorted(path.parent for path in TARGET.glob("*/summary.json"))
    if not folders:
        print("no stored rows: run 'make zoo' first", file=sys.stderr)
        return 2
    sizes = {folder.name: rebuild(folder) for folder in folders}
    print(leaderboard(TARGET))
    for name, size in sizes.items():
        print(f"reports/{name}: {size / 1e6:.1f} MB")
    print(f"{len(sizes)} reports, {sum(sizes.values()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
