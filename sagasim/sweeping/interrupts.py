"""Ctrl-C and polite kills, put off while something is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT, SIGTERM

__all__ = ["undisturbed"]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Ctrl-C and a polite kill off to the end of this.

    A worker that is half begun is not known yet, and would not be ended; an extension module that is half imported may
    swallow the exception.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    put_off: list[int] = []
    before = {number: signal.signal(number, lambda n, _: put_off.append(n)) for number in (SIGINT, SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if put_off:
            signal.raise_signal(put_off[0])
