"""Many users on one loaded model of a real card: batches against a raw loop, and against one job at a time."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import time
from typing import Any, NamedTuple

import pytest
from cards import Card, ended, make, percentile, processors, tell, what_is_missing
from harness import run
from plugins_on_cards import TOKENS, Encoder

missing = what_is_missing() or ("" if importlib.util.find_spec("transformers") else "transformers is not installed")
pytestmark = pytest.mark.skipif(bool(missing), reason=missing or "there is a card")

USERS, SECONDS, WARM_UP_SECONDS = 32, 4.0, 1.5


class Figures(NamedTuple):
    per_second: float
    p50: float  # Seconds
    p99: float

    def __str__(self) -> str:
        return f"{self.per_second:7,.0f} requests/s, p50 {self.p50 * 1000:6.1f} ms, p99 {self.p99 * 1000:6.1f} ms"


def request(numbers: random.Random) -> list[int]:
    return [numbers.randrange(30_000) for _ in range(TOKENS)]


def raw_loop() -> Figures:
    "One thread without this library, in batches as large as the number of users: as fast as it can be."
    import torch

    encoder, numbers, latencies = Encoder(), random.Random(1), list[float]()
    batches = [[request(numbers) for _ in range(USERS)] for _ in range(20)]
    for batch in batches:
        encoder(batch)
    began = now = time.perf_counter()
    while now - began < SECONDS:
        since = now
        assert len(encoder(batches[len(latencies) % len(batches)])) == USERS
        now = time.perf_counter()
        latencies.append(now - since)
    del encoder
    torch.cuda.empty_cache()
    return Figures(len(latencies) * USERS / (now - began), percentile(latencies, 0.5), percentile(latencies, 0.99))


async def users_of(plugin_id: str) -> tuple[Figures, list[Any]]:  # And the answers to the first requests
    "Each user waits for an answer before the next request."
    latencies: list[float] = []

    async def user(number: int, manager) -> None:
        numbers = random.Random(number)
        requests = [request(numbers) for _ in range(20)]
        count = 0
        while (since := time.perf_counter()) < until_when:
            job = await manager.start_job(plugin_id, tokens=requests[count % len(requests)])
            await manager.wait(job.id, 30)
            assert job.status == "completed" and job.result.shape == (768,), job.error
            count += 1
            if since >= from_when:
                latencies.append(time.perf_counter() - since)

    async with make() as manager:
        first = await ended(manager, plugin_id, tokens=request(random.Random(0)))
        assert first.status == "completed", first.error
        jobs = [await manager.start_job(plugin_id, tokens=request(random.Random(n))) for n in range(USERS)]
        vectors = [(await manager.wait(job.id, 30)).result for job in jobs]
        from_when = time.perf_counter() + WARM_UP_SECONDS
        until_when = from_when + SECONDS
        await asyncio.gather(*(user(number, manager) for number in range(USERS)))
        seconds = time.perf_counter() - from_when
    return Figures(len(latencies) / seconds, percentile(latencies, 0.5), percentile(latencies, 0.99)), vectors


def test_batches_beside_a_raw_loop_and_one_by_one():
    card = Card()
    tell(
        f"{card.name}, {processors()} processors, {USERS} users, {TOKENS} tokens a request, an encoder as large as BERT"
    )
    card.close()
    raw = raw_loop()
    tell(f"raw loop, batches of {USERS}:  {raw}")
    batched, vectors = run(users_of("Batched"))
    tell(f"the manager, batches:      {batched}  ({batched.per_second / raw.per_second:.2f} of the raw loop)")
    single, same = run(users_of("OneByOne"))
    tell(f"the manager, one by one:   {single}")
    for vector, other in zip(vectors, same, strict=True):  # each job has the answer to its own request
        assert abs(vector - other).max() < 0.02 < abs(vector - vectors[vector is vectors[0]]).max()
    assert batched.per_second >= 0.7 * raw.per_second
    assert batched.per_second >= 8 * single.per_second
    assert batched.p99 < single.p99
