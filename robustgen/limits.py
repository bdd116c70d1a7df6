"""What a chunk may not go beyond: the machine's memory, and a time limit where one is set."""

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
"""Seconds beyond twice a time limit, after which native code is given up."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch says it of the processor's in a RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """A block that is still running after ``seconds`` (None: no limit) is left by a UserError.

    The alarm is heard wherever Python code runs or waits, in the main thread, and rings again each
    second in case that someone's code catches what it raises. Where native code never comes back, or
    the block runs in another thread, the process ends after twice the time and 10 s, with a traceback
    and exit code 1: what is finished is on disk, and the same command goes on from there.
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
    heard = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if heard:
        handler = signal.signal(signal.SIGALRM, ring)
        timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        if heard:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, handler)
        faulthandler.cancel_dump_traceback_later()
