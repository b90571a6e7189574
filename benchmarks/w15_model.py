"""A simulated model, and how each peer serves it.

`python -m benchmarks.w15_model litserve batch 8000` is one server.

One call takes 5 ms, and a call with a batch of 16 takes 6 ms, both without the interpreter lock, as on a graphics card.
Workers import this module, so it imports little at its top.
"""

import time

MOST, WAIT = 16, 0.002  # jobs in a batch; seconds that a batch waits for more of them
PLACES, PAUSE = 200, 0.05  # async jobs at a time; seconds that each of them waits
KINDS = ("single", "batch", "async")


class Model:
    "Doubles numbers, in one call at a time, as a card works."

    def __init__(self):
        import threading

        self.lock = threading.Lock()

    def __call__(self, numbers):
        with self.lock:
            time.sleep(0.005 + 0.001 * (len(numbers) - 1) / (MOST - 1))
        return [2 * number for number in numbers]


# ------------------------------------------------------------------------------------------------------------- ours
class OneByOne:
    def load(self, config):
        self.model = Model()

    def execute(self, number):
        return self.model([number])[0]


class InBatches:
    max_batch_size, batch_wait_seconds = MOST, WAIT

    def load(self, config):
        self.model = Model()

    def execute_batch(self, batch):
        return self.model([params["number"] for params in batch])


class Together:
    max_concurrency = PLACES

    async def execute(self, number):
        import asyncio

        await asyncio.sleep(PAUSE)
        return 2 * number


PLUGINS = dict(zip(KINDS, (OneByOne, InBatches, Together), strict=True))


def manager(kind):
    from cjm_worker_ext import BaseJobManager

    plugins = {"model": f"benchmarks.w15_model:{PLUGINS[kind].__name__}"}
    return BaseJobManager("benchmark", "benchmark", plugins=plugins)


async def answer_of(jobs, number):
    job = await jobs.start_job("model", number=number)
    job = await jobs.wait(job.id)
    if job.status != "completed":
        raise RuntimeError(f"{job.status}: {job.error}")
    return job.result


def serve_ours(kind, port):
    "A Starlette app with a manager, as an app of ours is."
    import contextlib

    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    jobs = manager(kind)

    async def predict(request):
        return JSONResponse(await answer_of(jobs, (await request.json())["number"]))

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with jobs:
            yield

    app = Starlette(routes=[Route("/predict", predict, methods=["POST"])], lifespan=lifespan)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", access_log=False)


# --------------------------------------------------------------------------------------------------------- LitServe
def serve_litserve(kind, port):
    from benchmarks import w15_litserve

    w15_litserve.serve(kind, port)


# -------------------------------------------------------------------------------------------------------- Ray Serve
def ray_deployment(kind):
    "Called with a number by a handle, and with a request by its HTTP proxy."
    import asyncio

    from ray import serve

    class Http:
        async def __call__(self, request):
            if isinstance(request, int):
                return await self.answer(request)
            return await self.answer((await request.json())["number"])

    class Single(Http):
        def __init__(self):
            self.model = Model()

        async def answer(self, number):
            return self.model([number])[0]

    class Batch(Single):
        @serve.batch(max_batch_size=MOST, batch_wait_timeout_s=WAIT)
        async def answer(self, numbers):
            return self.model(numbers)  # as Ray's manual does it; a thread for it was no faster

    class Async(Http):
        async def answer(self, number):
            await asyncio.sleep(PAUSE)
            return 2 * number

    chosen = {"single": Single, "batch": Batch, "async": Async}[kind]
    return serve.deployment(num_replicas=1, max_ongoing_requests=PLACES)(chosen).bind()


SERVERS = {"ours-http": serve_ours, "litserve": serve_litserve}

if __name__ == "__main__":
    import sys

    SERVERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
