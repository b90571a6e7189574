"""Every kind of value goes out as a parameter and comes back as a result, through a real worker."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import codec_table as table
from test_round_trips import cases

from cjm_worker_ext import BaseJobManager, WorkerConfig

# Parameters travel as pickles, and those of pyarrow lose how many rows such a table has.
LOST_ON_THE_WAY_OUT = {"pyarrow: no columns"}


def echo(value: Any) -> Any:
    return value


def test_every_kind_goes_out_and_comes_back():
    async def scene():
        config = WorkerConfig(allowed_types=(*table.CLASS_LIST, "codec_table"))
        async with BaseJobManager(
            "echo", plugins={"echo": "test_through_workers:echo"}, worker_config=config
        ) as manager:
            wrong = []
            for case in cases():
                (value,) = case.values
                job = await manager.wait((await manager.start_job("echo", value=value)).id, 120)
                expected = value
                if case.id in LOST_ON_THE_WAY_OUT:
                    expected = pickle.loads(pickle.dumps(value, 5))
                    assert not table.same(value, expected), f"{case.id} loses nothing any more"
                if job.status != "completed" or not table.same(expected, job.result):
                    wrong.append((case.id, job.error))
            assert wrong == [], f"{len(wrong)} of {len(cases())}: {wrong}"

    asyncio.run(asyncio.wait_for(scene(), 240))
