"Plugins of which a worker runs several jobs at a time."

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from cjm_worker_ext.errors import TransientError
from cjm_worker_ext.plugins import current_context


class Configs:
    "A registry that knows one plugin's configuration, which may change."

    def __init__(self, plugin_id: str, config: dict):
        self.plugin_id, self.config = plugin_id, config

    def get_plugins_by_category(self, category):
        return []

    def get_plugin(self, plugin_id):
        return {"name": plugin_id} if plugin_id == self.plugin_id else None

    def load_plugin_config(self, plugin_id):
        return dict(self.config)


class Model:
    "Says with each result how large its batch was; a parameter says what goes wrong."

    max_batch_size = 4
    batch_wait_seconds = 0.2

    def load(self, config):
        self.scale, self.config = config.get("scale", 1), config

    def execute_batch(self, batch):
        if log := self.config.get("log"):
            with open(log, "a") as file:
                file.write(" ".join(str(params["x"]) for params in batch) + "\n")
        if go_on := next((params["until"] for params in batch if params.get("until")), None):
            while not Path(go_on).exists():
                time.sleep(0.002)
        if any(params.get("how") == "crash" for params in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        if any(params.get("how") == "raise for all" for params in batch):
            raise RuntimeError("the whole batch")
        if any(params.get("how") == "too few" for params in batch):
            return []
        if any(params.get("how") == "retire" for params in batch):
            current_context().retire_worker("it was enough")
        return [self.one(params, len(batch)) for params in batch]

    def one(self, params, count):
        if params.get("how") == "fail":
            return ValueError(f"not {params['x']}")
        if params.get("how") == "transient":
            return TransientError("not now")
        if params.get("how") == "array":
            import numpy as np

            return np.full(1 << 18, params["x"])  # 2 MiB
        if params.get("how") == "lambda":
            return lambda: None
        return {"y": params["x"] * self.scale, "of": count}


class Busy:
    "Batches that report progress to each job, and look whether one of them was cancelled."

    max_batch_size = 8
    batch_wait_seconds = 0.2

    def execute_batch(self, batch, contexts):
        for number, context in enumerate(contexts):
            context.progress(number / 10, f"part {number}")
        if go_on := batch[0].get("until"):
            while not Path(go_on).exists():
                time.sleep(0.002)
        return [context.cancelled for context in contexts]


class Deaf:
    "A batch that listens to nothing until there is a file."

    max_batch_size = 4
    batch_wait_seconds = 0.2

    def execute_batch(self, batch):
        while True:
            try:
                for params in batch:  # within: from here on the cancel may come
                    Path(params["started"]).touch()
                if Path(batch[0]["until"]).exists():
                    return [None for _ in batch]
                time.sleep(0.002)
            except BaseException:  # noqa: BLE001, S110  - the very point
                pass


class Meeting:
    "Jobs that wait for each other."

    max_concurrency = 200

    async def load(self, config):
        await asyncio.sleep(0)
        self.expected, self.here, self.most = config["expected"], 0, 0
        self.all_here = asyncio.Event()

    async def execute(self, number: int) -> int:
        self.here += 1
        self.most = max(self.most, self.here)
        if self.here == self.expected:
            self.all_here.set()
        try:
            await asyncio.wait_for(self.all_here.wait(), 120)
        finally:
            self.here -= 1
        return number


class Counted:
    "Says how many of its jobs ran at the same time."

    max_concurrency = 5

    def __init__(self):
        self.here = self.most = 0

    async def execute(self, seconds: float = 0.01) -> int:
        self.here += 1
        self.most = max(self.most, self.here)
        await asyncio.sleep(seconds)
        self.here -= 1
        return self.most


class Room:
    "A plugin with a loop of its own life: a background task, files that say what happened."

    max_concurrency = 10

    async def load(self, config):
        self.folder, self.beats = Path(config["folder"]), 0
        self.heart = asyncio.create_task(self.beat())

    async def beat(self):
        while True:
            self.beats += 1
            await asyncio.sleep(0.005)

    async def unload(self):
        self.heart.cancel()
        (self.folder / "unloaded").write_text(str(self.beats))

    def block(self):
        while not (self.folder / "told").exists():
            time.sleep(0.002)

    async def execute(self, name: str, until: str | None = None, how: str = "") -> str:
        (self.folder / f"{name} began").touch()
        context = current_context()
        context.progress(0.5, f"{name} is on its way")
        try:
            if how == "block":
                self.block()  # the fault that is to be found
            if how == "wedge":
                time.sleep(3600)  # noqa: ASYNC251  - the same for ever
            if how == "raise":
                raise KeyError(name)
            if how == "exit":
                raise SystemExit(3)
            if how == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "retire":
                context.retire_worker("it was enough")
            if how == "thread":
                return await asyncio.to_thread(lambda: current_context().job_id)
            if how == "beats":
                return str(self.beats)
            while until and not (self.folder / until).exists():  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            (self.folder / f"{name} was cancelled").touch()
            while how == "deaf" and not (self.folder / until).exists():  # noqa: ASYNC110
                try:
                    await asyncio.sleep(0.002)
                except asyncio.CancelledError:
                    pass
            raise
        assert current_context() is context
        return f"{name} {context.job_id}"


class Tokens:
    "An async generator."

    max_concurrency = 10

    async def execute(self, count: int, until: str | None = None):
        for number in range(count):
            yield number
            await asyncio.sleep(0)
        while until and not Path(until).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def runs_a_loop_of_its_own(x: int) -> int:
    "A plain plugin that uses asyncio inside."

    async def double() -> int:
        await asyncio.sleep(0)
        return 2 * x

    return asyncio.run(double())


def read_slowly(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


class SlowToRead:
    "A parameter that takes its time to arrive."

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __reduce__(self):
        return read_slowly, (self.seconds,)


class Ghost:
    "A result of which not even the class can be asked for, as a proxy outside of its context."

    @property
    def __class__(self):
        raise RuntimeError("nobody is here")


class Liar(list):
    "A list that yields less than it says."

    def __iter__(self):
        return iter(())


class Odd:
    "Batches with odd results."

    max_batch_size = 4
    batch_wait_seconds = 0.2

    def execute_batch(self, batch):
        results = [Ghost() if params.get("ghost") else params.get("x") for params in batch]
        return Liar(results) if any(params.get("liar") for params in batch) else results


class Forks:
    "An async job whose child goes on in the loop."

    async def execute(self, number: int, fork: bool = False) -> int:
        if fork and not os.fork():
            for _ in range(1000):  # it ends when it comes back to the loop, the first time
                await asyncio.sleep(0)
                time.sleep(0.001)  # noqa: ASYNC251  - its turns are not to take a whole processor
            os._exit(0)
        await asyncio.sleep(0.5 if fork else 0.005)
        return number


class Embeds:
    "Returns an array for each text."

    max_batch_size = 32

    def execute_batch(self, batch):
        import numpy as np

        return list(np.zeros((len(batch), 768), np.float32))


class Prints:
    "Prints a numbered line for each batch, and returns its number."

    lines = 0

    def execute_batch(self, batch):
        self.lines += 1
        print(f"line {self.lines} of a batch")
        return [self.lines] * len(batch)
