"""What a cancelled or timed-out job must not break: imports, loads, chunks, and what its forked children do."""

from __future__ import annotations

SLOW_MODULE = """
import time, pathlib
if "{name}" in globals().get("seen", []): raise ImportError("imported twice")
pathlib.Path({started!r}).touch()
end = time.monotonic() + 0.6
while time.monotonic() < end: pass
answer = 42
"""
