"""``make faults``: kill -9 a report at random moments, resume it, and compare with one left in peace.

Each kill must lose nothing: chunks that were finished keep their files untouched (inode and time of
change), and in the end every row equals the undisturbed run's, bit for bit. The figure comes last.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from robustgen.store import RunStore


class Result(NamedTuple):
    """What a series of kills came to."""

    kills: int
    chunks: int
    recomputed: int
    differing: list[str]


def report(out: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start ``robustgen report`` in a process group of its own."""
    command = [sys.executable, "-m", "robustgen.cli", "report", *arguments, "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(out: Path, arguments: list[str]) -> None:
    """Run a report to its end."""
    process = report(out, arguments)
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the report ended with {process.returncode}: {errors.decode()[-2000:]}")


def chunk_files(out: Path) -> dict[str, tuple[int, int]]:
    """Every finished chunk's rows file, with what would change if it were written again."""
    files = out.glob("runs/*/samples/*/[0-9]*.parquet")
    return {str(f.relative_to(out)): (f.stat().st_ino, f.stat().st_mtime_ns) for f in files}


def kill_and_resume(arguments: list[str], kills: int, folder: Path, seed: int | None = None) -> Result:
    """Disturb one report ``kills`` times, let it end, and compare it with one that ran in peace."""
    chance = random.Random(seed)
    peaceful, disturbed = folder / "peaceful", folder / "disturbed"
    began = time.monotonic()
    finish(peaceful, arguments)
    lasts = time.monotonic() - began
    finished: dict[str, tuple[int, int]] = {}
    recomputed = done = 0
    while done < kills:
        process = report(disturbed, arguments)
        # A kill before the first chunk would be no test of resuming: each life finishes one at least.
        while process.poll() is None and len(chunk_files(disturbed)) <= len(finished):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, lasts / kills / 3))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        recomputed += touched(finished, finished := chunk_files(disturbed))
        done += 1
    finish(disturbed, arguments)
    recomputed += touched(finished, now := chunk_files(disturbed))
    return Result(done, len(now), recomputed, differences(peaceful, disturbed))


def touched(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> int:
    """How many chunks that were finished before are absent or written anew after."""
    return sum(after.get(name) != mark for name, mark in before.items())


def differences(one: Path, other: Path) -> list[str]:
    """Evaluations whose rows, tables or pictures are not the same in two reports."""
    found = []
    for path in sorted((one / "runs").iterdir()):
        a, b = RunStore.read(path), RunStore.read(other / "runs" / path.name)
        for evaluation in (e["name"] for e in a.spec["evaluations"]):
            pairs = [
                (a.rows(evaluation), b.rows(evaluation)),
                (a.adversarial(evaluation), b.adversarial(evaluation)),
                (a.table(evaluation, "guidance"), b.table(evaluation, "guidance")),
            ]
            if not all(x == y if x is None or y is None else x.equals(y) for x, y in pairs):
                found.append(f"{path.name}/{evaluation}")
    return found


def main() -> int:
    """Five kills of a real report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; none: another each time")
    parser.add_argument(
        "arguments", nargs="*", default=["--data", "digits", "--protocol", "quick", "--n", "128"]
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = kill_and_resume(options.arguments, options.kills, Path(folder), options.seed)
    print("\n".join(f"differs: {name}" for name in result.differing))
    print(
        f"{result.kills} kills, {result.chunks} chunks: {result.recomputed} finished chunks computed again, "
        f"{len(result.differing)} evaluations differ"
    )
    return 1 if result.recomputed or result.differing else 0


if __name__ == "__main__":
    sys.exit(main())
