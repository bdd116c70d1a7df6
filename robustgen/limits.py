"""Limits of a chunk: running out of memory, and the time limit."""

from __future__ import annotations

import faulthandler
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from robustgen.errors import UserError

GRACE = 10.0
"""Seconds beyond twice the time limit, after which a process that hangs in native code is ended."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; for main memory torch raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise UserError inside the block if it is still running after ``seconds`` (None: no limit).

    An alarm does this while the main thread runs Python code or waits; it repeats every second, in case the
    user's code catches the error. If native code never returns, or the block runs in another thread, the
    process ends after twice the time and 10 s, with a traceback and exit code 1: what is finished is on disk,
    and the same command continues from there.
    """
    if seconds is None:
        yield
        return

    def ring(*_: Any) -> None:
        raise UserError(
            "a chunk took too long", where="--time-limit", expected=f"at most {seconds:g} s",
            remedy="look at what the model waits for, or raise the limit",
        )  # fmt: skip

    faulthandler.dump_traceback_later(2 * seconds + GRACE, exit=True, file=2)  # stderr
    has_alarm = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if has_alarm:
        handler = signal.signal(signal.SIGALRM, ring)
        timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)
        faulthandler.cancel_dump_traceback_later()
