"""A block that takes too long is left, whatever it waits for."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import torch

from robustgen.errors import UserError
from robustgen.limits import out_of_memory, time_limit


def sleep() -> None:
    time.sleep(60)


def stubborn() -> None:
    """Catches the first alarm, as code that catches every exception does."""
    for _ in range(2):
        try:
            time.sleep(60)
        except Exception:
            continue
    sleep()


@pytest.mark.parametrize("hang", [sleep, stubborn])
def test_a_hang_is_left_with_a_message(hang):
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserError, match="took too long") as caught, time_limit(0.1):
        hang()
    assert "at most 0.1 s" in str(caught.value)
    assert signal.getsignal(signal.SIGALRM) is handler


@pytest.mark.parametrize("limit", [None, 50.0])
def test_what_keeps_to_the_limit_is_left_alone_and_an_outer_alarm_still_rings(limit):
    rung = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with time_limit(limit):
            pass
        time.sleep(0.6)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
    assert rung == [True]


def test_code_that_never_comes_back_ends_the_process_with_a_traceback():
    # a native call that retries whatever signal comes: no handler of Python's is heard during it
    code = (
        "import ctypes, signal, robustgen.limits as limits\n"
        "limits.GRACE = 0.1\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "with limits.time_limit(0.1):\n    ctypes.CDLL(None).sleep(60)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "Timeout" in result.stderr
    assert 'File "<string>", line 5' in result.stderr


def test_memory_that_ran_out_is_told_from_other_errors():
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("sizes do not match"))
    assert not out_of_memory(UserError("no room"))
