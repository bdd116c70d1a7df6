"""A report in a process of its own, and one fault in it: at a write, a read, a load or a call of the model.

The process is forked, so a fault is what it is: SIGKILL kills, a full disk stays full to the end. What is
wrapped is what robustgen calls (pathlib, os, the model's methods), never its own code.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustgen import cli, engine, job, worker
from robustgen.classifiers.base import Classifier
from robustgen.plan import builder, gradients

MENU = {
    "write": ("kill", "power loss", "full disk", "read-only folder"),
    "read": ("kill", "unreadable"),
    "load": ("kill", "exception"),
    "call": ("kill", "exception", "NaN", "out of memory", "hang"),
}
PLACES = tuple(MENU)
TIME_LIMIT = 4.0
"""Seconds a chunk, for the process in which the model hangs."""


@dataclass(frozen=True)
class Fault:
    """What happens at which event (counted from 0) of a place; ``seed``: of how much of a file is left."""

    place: str
    what: str
    at: int
    seed: int = 0


class Life(NamedTuple):
    """How a report ended: exit code (minus the signal; None: it had to be stopped), whether its fault came
    to pass, how many events of each place there were, what it said on stderr, and when it began."""

    code: int | None
    fired: bool
    events: dict[str, int]
    said: str
    began: float


class Child:
    """A forked process that runs ``robustgen report``; ``wait`` for its end."""

    def __init__(self, arguments: list[str], out: Path, fault: Fault | None = None) -> None:
        self.shared = mmap.mmap(-1, 4 * (len(PLACES) + 1))
        self.stderr = out.parent / f"stderr-{time.monotonic_ns()}"
        if fault and fault.what == "hang":
            arguments = [*arguments, "--time-limit", str(TIME_LIMIT)]
        self.began = time.time()
        self.pid = os.fork()
        if self.pid == 0:
            _live([*arguments, "--out", str(out)], self.stderr, Injector(fault, out, self.shared))

    def wait(self, patience: float = 240.0) -> Life:
        """Its end; after ``patience`` seconds it is stopped."""
        deadline, stopped, status = time.monotonic() + patience, False, None
        while status is None:
            pid, found = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                status = found
            elif time.monotonic() > deadline and not stopped:
                os.kill(self.pid, signal.SIGKILL)
                stopped = True
            else:
                time.sleep(0.02)
        counts = memoryview(self.shared).cast("i")
        events = dict(zip(PLACES, counts, strict=False))
        said = self.stderr.read_text(errors="replace") if self.stderr.exists() else ""
        code = None if stopped else os.waitstatus_to_exitcode(status)
        return Life(code, bool(counts[len(PLACES)]), events, said, self.began)


def _live(arguments: list[str], stderr: Path, injector: Injector) -> None:
    """The child's whole life: it never returns."""
    code = 1
    try:
        for stream, file in ((1, os.devnull), (2, stderr)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
        sys.argv = ["robustgen", "report", *arguments]
        injector.install()
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Injector:
    """Counts the events of each place, and lets the fault happen at its own."""

    def __init__(self, fault: Fault | None, out: Path, shared: mmap.mmap) -> None:
        self.fault = fault or Fault("", "", -1)
        self.out = str(out)
        self.counts = memoryview(shared).cast("i")
        self.chance = random.Random(self.fault.seed)
        self.refused = 0  # the error number of every write from now on
        self.inside = False

    def due(self, place: str) -> str:
        """Count an event; what happens there ("" for nothing)."""
        index = PLACES.index(place)
        self.counts[index] += 1
        if (place, self.counts[index] - 1) != (self.fault.place, self.fault.at):
            return ""
        self.counts[len(PLACES)] = 1
        return self.fault.what

    def install(self) -> None:
        """Wrap what robustgen calls, in this process, for good."""
        for name in ("write_bytes", "write_text", "replace"):
            self._wrap(Path, name, self._write)
        for name in ("read_bytes", "read_text"):
            self._wrap(Path, name, self._read)
        self._wrap(Path, "open", self._open)
        for name in ("fsync", "link"):
            self._wrap(os, name, self._write)
        for module, name in (
            (engine, "load_model"), (engine, "load_data"), (job, "load_data"), (worker, "load_data"),
            (builder, "load_data"), (gradients, "load_data"), (gradients, "load"),
        ):  # fmt: skip
            self._wrap(module, name, self._load)

    def _wrap(self, owner: Any, name: str, instead: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            of_the_run = not isinstance(args[0], Path) or str(args[0]).startswith(self.out)
            if self.inside or (owner is Path and not of_the_run):
                return real(*args, **kwargs)
            self.inside = instead in (self._write, self._read)  # read_text calls open
            try:
                return instead(real, *args, **kwargs)
            finally:
                self.inside = False

        setattr(owner, name, wrapped)

    def _open(self, real: Callable[..., Any], path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        whole = self._read if mode.startswith("r") else self._write
        return whole(real, path, mode, *args, **kwargs)

    def _write(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        what = self.due("write")
        if self.refused:
            raise OSError(self.refused, os.strerror(self.refused))
        if not what:
            return real(*args, **kwargs)
        content = args[1] if len(args) > 1 and isinstance(args[1], str | bytes) else b""
        if what == "power loss" and len(args) > 1 and isinstance(args[1], Path):
            real(*args, **kwargs)  # the name was on disk, not all of what it names
            os.truncate(args[1], self.chance.randrange(args[1].stat().st_size + 1))
        elif what != "read-only folder" and real.__name__.startswith("write"):
            real(args[0], content[: self.chance.randrange(len(content) + 1)], **kwargs)
        if what in ("kill", "power loss"):
            os.kill(os.getpid(), signal.SIGKILL)
        self.refused = errno.ENOSPC if what == "full disk" else errno.EROFS
        raise OSError(self.refused, os.strerror(self.refused))

    def _read(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        what = self.due("read")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **kwargs)

    def _load(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        what = self.due("load")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        loaded = real(*args, **kwargs)
        if isinstance(loaded, torch.nn.Module):
            self._watch(type(loaded))
        return loaded

    def _watch(self, model: type) -> None:
        """Wrap the methods by which a model or a denoiser is asked, once a class."""
        for name in ("logits", "log_joint", "log_prob", "denoise"):
            own = getattr(model, name, None)
            if own in (None, getattr(Classifier, name)) or hasattr(own, "watched"):
                continue

            def asked(*args: Any, own: Any = own, **kwargs: Any) -> Any:
                return self._call(own, *args, **kwargs)

            asked.watched, asked.__name__ = True, name  # type: ignore[attr-defined]
            setattr(model, name, asked)

    def _call(self, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        match self.due("call"):
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exception":
                raise RuntimeError("injected")
            case "out of memory":
                raise torch.OutOfMemoryError("injected")
            case "hang":
                time.sleep(1e6)
            case "NaN":
                answer = real(*args, **kwargs).clone()
                answer[self.chance.randrange(len(answer))] = torch.nan
                return answer
        return real(*args, **kwargs)
