"""Plugins of `metrics_app.py`."""

import os
import signal
import sys
import time


def double(n):
    return 2 * n


def dies():
    os.kill(os.getpid(), signal.SIGSEGV)


def fails():
    raise ValueError("no text")


def sleeps():
    time.sleep(600)


async def agrees(n):
    from opentelemetry import trace

    return f"{n} {trace.get_current_span().get_span_context().trace_id:032x}"


def halves(n):
    while n > 1:
        n //= 2
        yield n


def has_opentelemetry():
    return "opentelemetry" in sys.modules
