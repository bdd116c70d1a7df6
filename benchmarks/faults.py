"""Random faults in a row on a digits run (docs/faults.md); ends with the line 'N faults, 0 lost, 0 wrong'.

Again and again a report is begun and disturbed, by one fault after the other: at a write, a read, a load or
a call of the model; by damage to a stored file; by a second run on the same folder; by SIGKILL to a command
of its own. After each, what is stored is compared, bit for bit, with a run that was left in peace, and what
the report says with what is there. In the end the same command, in peace, must give the same rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.audit import Audit
from benchmarks.injection import MENU, Child, Fault, Life
from robustgen import cli

MODEL = "softmax-digits"
PROTOCOL = """
name: faults
version: 1
summary: A little of everything, for the fault harness.
n: 24
chunk: 8
data:
  digits: {eps: {linf: 0.1}, foreign: [letters], sigmas: [0.25, 0.56], denoiser: denoiser-digits}
evaluations:
  - kind: clean
  - {kind: attack, attack: pgd, norm: linf, options: {steps: 4, restarts: 2}}
  - {kind: attack, attack: autoattack, norm: linf, options: {n_iter: 2, n_target_classes: 2, n_queries: 4}}
  - {kind: corruptions, types: [gaussian_noise], severities: [3]}
  - {kind: ood, scores: [gradient]}
  - {kind: gradients, pictures: 2}
"""
AROUND = ("damage", "truncation", "two at once")
"""What happens to a folder from outside."""
ROUND = 8
"""Faults at most, before a run is let end in peace."""


@dataclass
class Series:
    """Faults in a row: how many of which kind came to pass, and what was found lost or wrong."""

    folder: Path
    chance: random.Random
    cold: int
    faults: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    rounds: int = 0
    events: list[dict[str, int]] = field(default_factory=list)
    """How many there are of each place in a whole run, and in one that finds it complete."""

    def __post_init__(self) -> None:
        protocol = self.folder / "faults.yaml"
        protocol.write_text(PROTOCOL)
        self.arguments = [MODEL, "--data", "digits", "--protocol", str(protocol)]
        # In this process, so that those forked from it need not import and load anew.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            sys.argv = ["robustgen", "report", *self.arguments, "-q", "--out", str(self.folder / "peaceful")]
            cli.main()
        self.audit = Audit(self.folder / "peaceful")
        for what in ("a run in peace", "one that has nothing to do"):
            life = Child(self.arguments, self.folder / "forked").wait(900)
            self.events.append(life.events)
            self._judge(what, self.folder / "forked", life, [])

    def run(self, faults: int) -> None:
        """Rounds of faults until so many came to pass."""
        while self.faults.total() < faults:
            self.rounds += 1
            out = self.folder / f"round-{self.rounds}"
            for _ in range(min(ROUND, faults - self.faults.total())):
                self._disturb(out)
            life = Child(self.arguments, out).wait()
            self._judge("the end in peace", out, life, [])
            if life.code != 0 or not self.audit.complete(out):
                self.wrong.append(f"round {self.rounds}: the same command in peace ended with {life.code}, "
                                  f"incomplete: {life.said[-600:]}")  # fmt: skip

    def _disturb(self, out: Path) -> None:
        """One fault that comes to pass; a life in which it does not is a resume like any other."""
        while True:
            what, lives = self._one(out)
            before = self.before
            for life in lives:
                self._judge(what, out, life, before)
            if not lives or any(life.fired for life in lives):
                self.faults[what] += 1
                return

    def _one(self, out: Path) -> tuple[str, list[Life]]:
        """Choose a fault, and let it happen: its name, and the lives that it was meant for."""
        if self.cold and self.chance.random() < 0.05:
            self.cold -= 1
            self.before = self.audit.sound(out)
            return "kill of a command", [self._killed_command(out)]
        kinds = [(place, what) for place, several in MENU.items() for what in several]
        place, what = self.chance.choice([*kinds, *((around, "") for around in AROUND)])
        if place in ("damage", "truncation"):
            done = self._damage(out, place)
            self.before = self.audit.sound(out)
            return (f"{place} of a file", []) if done else self._one(out)
        self.before = self.audit.sound(out)
        if place == "two at once":
            killed = Fault("call", "kill", self._moment("call"))
            several = [Child(self.arguments, out, fault) for fault in (killed, None)]
            lives = [child.wait() for child in several]
            return place, [life._replace(fired=True) for life in lives]
        fault = Fault(place, what, self._moment(place), self.chance.randrange(2**31))
        return f"{what} at a {place}", [Child(self.arguments, out, fault).wait()]

    def _moment(self, place: str) -> int:
        """At which event of a place, of about as many as the next life will have."""
        whole, nothing = (events[place] for events in self.events)
        missing = 1 - len(self.before) / self.audit.chunks
        return self.chance.randrange(max(1, round(nothing + (whole - nothing) * missing)))

    def _damage(self, out: Path, how: str) -> bool:
        """Change one byte of one stored file, or cut it off; False where there is none."""
        files = sorted(f for f in out.rglob("*") if f.is_file() and f.stat().st_size)
        if not files:
            return False
        kinds: dict[str, list[Path]] = {}
        for file in files:  # every kind of file as often as another
            kinds.setdefault(
                file.relative_to(out).parts[2] if "runs" in file.parts else file.name, []
            ).append(file)
        file = self.chance.choice(kinds[self.chance.choice(sorted(kinds))])
        content = bytearray(file.read_bytes())
        place = self.chance.randrange(len(content))
        if how == "damage":
            content[place] ^= self.chance.randrange(1, 256)
        file.write_bytes(content if how == "damage" else content[:place])
        return True

    def _killed_command(self, out: Path) -> Life:
        """A command of its own, from a cold start, killed at a random moment after it has begun."""
        command = [sys.executable, "-m", "robustgen.cli", "report", *self.arguments, "--out", str(out)]
        began, chunks = time.time(), len(self.before)
        said = self.folder / "stderr"
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
            )
        while process.poll() is None and len(self.audit.files(out)) <= chunks < self.audit.chunks:
            time.sleep(0.01)
        time.sleep(self.chance.uniform(0, 1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        return Life(code, True, {}, said.read_text(errors="replace"), began)

    def _judge(self, what: str, out: Path, life: Life, before: list[Any]) -> None:
        """Compare what is stored, and what the report says, with the peaceful run's."""
        name = f"round {self.rounds}, fault {self.faults.total() + 1}, {what}"
        lost, wrong = self.audit.judge(out, life, before)
        self.lost += [f"{name}: {line}" for line in lost]
        self.wrong += [f"{name}: {line}" for line in wrong]


def run(faults: int, seed: int, folder: Path, cold: int) -> Series:
    """So many random faults in a row, ``cold`` of them at most to commands from a cold start."""
    torch.set_num_threads(1)  # a thread does not outlive a fork
    series = Series(folder, random.Random(seed), cold)
    series.run(faults)
    return series


def main() -> int:
    """Two hundred faults, or as many as are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        series = run(options.faults, options.seed, Path(folder), cold=options.faults // 50)
    total = series.faults.total()
    if options.json:
        found = {"faults": total, "lost": series.lost, "wrong": series.wrong, "rounds": series.rounds,
                 "kinds": dict(sorted(series.faults.items())), "seconds": time.monotonic() - began,
                 "seed": options.seed}  # fmt: skip
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(f"{count:4d}  {kind}" for kind, count in sorted(series.faults.items())))
        print("\n".join([*(f"lost: {x}" for x in series.lost), *(f"wrong: {x}" for x in series.wrong)]))
        print(f"{series.rounds} rounds in {time.monotonic() - began:.0f} s")
        print(f"{total} faults, {len(series.lost)} lost, {len(series.wrong)} wrong")
    return 1 if series.lost or series.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
