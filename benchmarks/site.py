"""``make site``: publish the zoo's reports (HTML, summaries, rows) and an index of them to reports/.

Adversarial pictures stay behind for their size; whoever wants to verify them runs ``make zoo``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from robustgen.report.leaderboard import leaderboard

SOURCE, TARGET = Path("out/zoo"), Path("reports")


def publish(source: Path, target: Path) -> int:
    """Copy one finished report, and return its size in bytes."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("adversarial", "*.tmp"))
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def main() -> int:
    """Publish every finished report of the zoo."""
    finished = sorted(path.parent for path in SOURCE.glob("*/summary.json"))
    if not finished:
        print("no stored rows: run 'make zoo' first", file=sys.stderr)
        return 2
    sizes = {path.name: publish(path, TARGET / path.name) for path in finished}
    print(leaderboard(TARGET))
    for name, size in sizes.items():
        print(f"reports/{name}: {size / 1e6:.1f} MB")
    print(f"{len(sizes)} reports published, {sum(sizes.values()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
