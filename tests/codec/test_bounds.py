"""Bounds of what a message may hold, each just above its limit, so that nothing else refuses it."""

import tracemalloc

import pytest

from cjm_worker_ext.backends.codec import MARKED, MAX_DEPTH, PLAIN, SMALL_MESSAGE, decode
from cjm_worker_ext.errors import RefusedType


@pytest.mark.parametrize("depth", [2 * MAX_DEPTH + 10, 400])
def test_a_message_of_many_levels(depth):
    nested = b"\xdc\x00\x02" * depth + b"\xc0" + b"\xc0" * depth  # lists of two: the next list, and None
    with pytest.raises(RefusedType, match="nested too deeply"):
        decode(MARKED + nested)


def test_lists_that_announce_more_than_has_arrived():
    count, size = 200, 100_000
    message = PLAIN + (b"\xdd" + size.to_bytes(4, "big")) * count + b"\xc0" * size
    assert len(message) > SMALL_MESSAGE
    tracemalloc.start()
    try:
        with pytest.raises(RefusedType):
            decode(message)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20, "room for what was announced"
    finally:
        tracemalloc.stop()
