"""Look the locked packages up in a database of known vulnerabilities, with pip-audit.

Exit code 1 where one is known; 0 where none is, and where the database cannot be asked: then the last line
begins with "not audited", and nothing is claimed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "lock" / "requirements.lock"


def ask() -> tuple[list[dict[str, Any]], str]:
    """What pip-audit says of each package, and its words where it says nothing."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "--require-hashes"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return json.loads(result.stdout)["dependencies"], ""
    except subprocess.TimeoutExpired:
        return [], "no answer within five minutes"
    except (ValueError, KeyError):
        return [], (result.stderr.strip().splitlines() or ["no answer"])[-1]


def judge(packages: list[dict[str, Any]], said: str) -> tuple[list[str], int]:
    """Lines to print, the last of them the outcome, and the exit code.

    pip-audit calls a package that the database does not answer for "skipped" and ends well all the same.
    """
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        reason = said or f"the database has no answer for any of {len(packages)} packages"
        return [f"not audited: {reason}"], 0
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions'])}"
        for package in known
        for found in package["vulns"]
    ]
    unknown = len(packages) - len(known)
    rest = f"; not audited: {unknown} that the database does not know" if unknown else ""
    return [*lines, f"{len(known)} packages audited, {len(lines)} known vulnerabilities{rest}"], int(
        bool(lines)
    )


def main() -> int:
    """Ask and print."""
    lines, code = judge(*ask())
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
