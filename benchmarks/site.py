"""``make site``: publish the zoo's reports, rebuild each from its stored rows, and index them in reports/.

Adversarial pictures stay behind for their size; whoever wants to verify them runs ``make zoo``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from robustgen.report.leaderboard import leaderboard
from robustgen.report.publishing import publish, rebuild

SOURCE, TARGET = Path("out/zoo"), Path("reports")
MOST = 30e6
"""What all published reports may weigh together, in bytes."""


def main() -> int:
    """Publish the zoo's finished reports among those that are published already."""
    for summary in sorted(SOURCE.glob("*/summary.json")):
        publish(summary.parent, TARGET / summary.parent.name)
    folders = sorted(path.parent for path in TARGET.glob("*/summary.json"))
    if not folders:
        print("no stored rows: run 'make zoo' first", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as workplace:
        sizes = {folder.name: rebuild(folder, Path(workplace)) for folder in folders}
    print(leaderboard(TARGET))
    for name, size in sizes.items():
        print(f"reports/{name}: {size / 1e6:.1f} MB")
    total = sum(sizes.values())
    print(f"{len(sizes)} reports, {total / 1e6:.1f} MB of {MOST / 1e6:.0f}")
    return 0 if total <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
