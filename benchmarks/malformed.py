"""Broken inputs by the thousand: each must end in one message that says what to do, or be read right.

Cards, protocols, recipes, weights, stored rows, picture parquet, pictures, .npz files and pictures from
elsewhere are broken in their bytes (flipped, cut, lengthened) and in what they say. Each is read as the
commands read it, within the command line's own handling of errors. A traceback is a fault; so is a message
that leaves out what, where, expected, got or remedy; so is an answer other than that of a second reader.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from benchmarks import malformed_files, malformed_tables
from benchmarks.malformed_files import Case
from robustgen import cli

KINDS = malformed_files.KINDS | malformed_tables.KINDS
PARTS = ("where:", "expected:", "got:", "remedy:")


class Verdict(NamedTuple):
    """What came of an input: ``refused``, ``read``, or a fault: ``traceback``, ``wrong``, ``words``."""

    outcome: str
    said: str


def judge(case: Case) -> Verdict:
    """Read one input as a command does, and look at what comes of it."""
    answer: list[object] = []
    said = io.StringIO()
    code: object = 0
    with contextlib.redirect_stderr(said), patch.object(cli, "app", lambda: answer.append(case.read())):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            return Verdict("traceback", traceback.format_exc())
    if code == 2:
        missing = [part for part in PARTS if part not in said.getvalue()]
        return Verdict("words" if missing else "refused", said.getvalue())
    if answer and case.right(answer[0]):
        return Verdict("read", "")
    return Verdict("wrong", f"{case.how}: {said.getvalue()} {str(answer)[:300]}")


def run(n: int, seed: int, folder: Path, tell: Callable[[str], None] = lambda _: None) -> dict[str, object]:
    """Judge ``n`` inputs, the kinds in turn; each is made from ``seed`` and its number alone."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's and Pillow's words on strange files are no result
        for i in range(n):
            kind = list(KINDS)[i % len(KINDS)]
            place = folder / str(i)
            place.mkdir()
            case = KINDS[kind](random.Random(f"{seed}/{i}"), place)
            verdict = judge(case)
            found[kind][verdict.outcome] += 1
            if verdict.outcome not in ("refused", "read"):
                tell(f"{verdict.outcome}: input {i}, {kind}, {case.how}\n{verdict.said}")
    total = sum(found.values(), Counter())
    return {
        "inputs": n, "seed": seed, "refused": total["refused"], "read_right": total["read"],
        "tracebacks": total["traceback"], "wrong_results": total["wrong"], "poor_messages": total["words"],
        "kinds": {kind: dict(counts) for kind, counts in found.items()},
    }  # fmt: skip


def main() -> int:
    """A thousand inputs, and the figure last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the counts by kind")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = run(options.n, options.seed, Path(folder), lambda text: print(text, file=sys.stderr))
    result["seconds"] = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps(result, indent=1))
        return int(any(result[key] for key in ("tracebacks", "wrong_results", "poor_messages")))
    for kind, counts in result["kinds"].items():  # type: ignore[attr-defined]
        print(f"{kind:<10} " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    print(
        f"{result['inputs']} malformed inputs, {result['tracebacks']} tracebacks, "
        f"{result['wrong_results']} wrong results, {result['poor_messages']} poor messages"
    )
    return int(any(result[key] for key in ("tracebacks", "wrong_results", "poor_messages")))


if __name__ == "__main__":
    sys.exit(main())
