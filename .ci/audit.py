"""Look the locked packages up in a database of known vulnerabilities, with pip-audit.

Exits with 1 if there is a known vulnerability, else with 0. If the database cannot be reached, the last line
begins with "not audited".
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "lock" / "requirements.lock"


def query() -> tuple[list[dict[str, Any]], str]:
    """pip-audit's result for each package, and its error message if there is none."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "--require-hashes"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return json.loads(result.stdout)["dependencies"], ""
    except subprocess.TimeoutExpired:
        return [], "no answer within five minutes"
    except (ValueError, KeyError):
        return [], (result.stderr.strip().splitlines() or ["no answer"])[-1]


def summarise(packages: list[dict[str, Any]], failure: str) -> tuple[list[str], int]:
    """Lines to print, the last of them the outcome, and the exit code.

    pip-audit calls a package that the database does not know "skipped", and still exits with 0.
    """
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        reason = failure or f"the database has no answer for any of {len(packages)} packages"
        return [f"not audited: {reason}"], 0
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions'])}"
        for package in known
        for found in package["vulns"]
    ]
    unknown = len(packages) - len(known)
    rest = f"; not audited: {unknown} that the database does not know" if unknown else ""
    return [*lines, f"{len(known)} packages audited, {len(lines)} known vulnerabilities{rest}"], int(
        bool(lines)
    )


def main() -> int:
    """Query the database and print the outcome."""
    lines, code = summarise(*query())
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
