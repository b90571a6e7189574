"""Workers that see one card each, on real processes; the cards are look-alikes, as NVML shows them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from types import ModuleType, SimpleNamespace

import pytest
from harness import PLUGINS, is_alive, run, until

from cjm_worker_ext import BaseJobManager, Recycle, WorkerConfig
from cjm_worker_ext.backends.cards import CardDesk

NAMES = ("see", "see_and_wait", "change_card", "FailsToLoad", "OneAtATime")


class Nvml(ModuleType):
    "As much of `pynvml` as is used; a card is lost if it is None."

    class NVMLError(Exception): ...

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.cards: list = []
        self.opened, self.hangs = 0, threading.Event()
        self.hangs.set()

    def add(self, uuid: str, pids=()) -> None:
        self.cards.append(SimpleNamespace(uuid=uuid, pids=list(pids)))

    def nvmlInit(self):
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlDeviceGetCount(self):
        self.hangs.wait(600)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        if self.cards[index] is None:
            raise self.NVMLError("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetUUID(self, card):
        return card.uuid

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid, usedGpuMemory=1) for pid in card.pids]


@pytest.fixture
def nvml(monkeypatch):
    found = Nvml()
    monkeypatch.setitem(__import__("sys").modules, "pynvml", found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("cjm_worker_ext.backends.cards.sees_host_pids", lambda: True)
    return found


def make(gpus="all", recycle=None, **config) -> BaseJobManager:
    settings = WorkerConfig(gpus=gpus, **{"cancel_grace_seconds": 0.05, "hold_after_crashes": 0, **config})
    plugins = {name: f"card_plugins:{name}" for name in NAMES} | {"exit_now": PLUGINS + "exit_now"}
    return BaseJobManager("cards", plugins=plugins, worker_config=settings, recycle=recycle)


async def ended(manager, plugin_id, /, **params):
    return await manager.wait((await manager.start_job(plugin_id, **params)).id, 120)


async def hold(manager, folder, name: str):
    "A job that stays on its worker until its file is there."
    started = folder / f"{name} started"
    job = await manager.start_job("see_and_wait", started=str(started), go_on=str(folder / f"{name} go on"))
    await until(started.exists)
    return job


async def let_go(manager, folder, name: str, job) -> str:
    (folder / f"{name} go on").touch()
    return (await manager.wait(job.id, 120)).result


def devices(manager) -> list[str | None]:
    return sorted((worker.device for worker in manager.workers()), key=str)


def test_each_worker_sees_one_card_from_the_first_import_on(nvml, tmp_path):
    nvml.add("GPU-a"), nvml.add("GPU-b")

    async def scene():
        async with make(max_workers=4) as manager:
            jobs = [await hold(manager, tmp_path, str(i)) for i in range(4)]
            assert devices(manager) == ["GPU 0", "GPU 0", "GPU 1", "GPU 1"]
            seen = [await let_go(manager, tmp_path, str(i), job) for i, job in enumerate(jobs)]
            assert seen == ["0", "1", "0", "1"]
        async with make(gpus=(1,)) as manager:
            assert (await ended(manager, "see")).result[1:] == ("1", "1", "PCI_BUS_ID")
        assert nvml.opened == 0

    run(scene())


@pytest.mark.parametrize("standby", [0, 1])
@pytest.mark.parametrize("how", ["crash", "cancel", "idle"])
def test_a_replacement_keeps_the_card(nvml, tmp_path, how, standby):
    nvml.add("GPU-a"), nvml.add("GPU-b"), nvml.add("GPU-c")

    async def scene():
        async with make(max_workers=3, standby_workers=standby) as manager:
            jobs = [await hold(manager, tmp_path, name) for name in "abc"]
            await until(lambda: len(manager.workers()) == 3 + standby)
            assert devices(manager) == ["GPU 0", "GPU 1", "GPU 2"] + [None] * standby, "a spare has no card"
            if how == "crash":
                os.kill(jobs[1].worker_pid, signal.SIGKILL)
            elif how == "cancel":
                await manager.cancel_job(jobs[1].id)
            else:
                await let_go(manager, tmp_path, "b", jobs[1])
                os.kill(jobs[1].worker_pid, signal.SIGKILL)
                await until(lambda: jobs[1].worker_pid not in [worker.pid for worker in manager.workers()])
            await manager.wait(jobs[1].id, 120)
            again = await hold(manager, tmp_path, "again")
            assert again.worker_pid != jobs[1].worker_pid
            assert await let_go(manager, tmp_path, "again", again) == "1"
            assert [await let_go(manager, tmp_path, name, jobs["abc".index(name)]) for name in "ac"] == [
                "0",
                "2",
            ]

    run(scene())


def test_what_an_app_may_use_itself_is_all(nvml, monkeypatch):
    nvml.add("GPU-a"), nvml.add("GPU-b"), nvml.add("GPU-c")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")

    async def scene():
        async with make() as manager:
            assert (await ended(manager, "see")).result[1] == "2"
        async with make(gpus=(0,)) as manager:
            assert (await ended(manager, "see")).result[1] == "0"

    run(scene())


def test_a_job_cannot_change_the_card_of_the_next_one(nvml):
    nvml.add("GPU-a")

    async def scene():
        async with make() as manager:
            assert (await ended(manager, "FailsToLoad")).status == "failed"
            await ended(manager, "change_card")
            assert (await ended(manager, "see")).result[1] == "0"

    run(scene())


def test_a_killed_worker_counts_as_running_until_its_memory_is_free(nvml, tmp_path):
    nvml.add("GPU-a")

    async def scene():
        async with make() as manager:
            job = await hold(manager, tmp_path, "first")
            nvml.cards[0].pids.append(job.worker_pid)
            cancel = asyncio.create_task(manager.cancel_job(job.id))
            waiting = await manager.start_job("see")
            await until(lambda: not is_alive(job.worker_pid))
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert (job.status, waiting.status) == ("running", "pending")
            nvml.cards[0].pids.clear()
            assert await cancel and job.status == "cancelled"
            assert (await manager.wait(waiting.id, 120)).result[1] == "0"

    run(scene())


def test_the_wait_for_memory_has_a_limit(nvml, tmp_path, monkeypatch, caplog):
    nvml.add("GPU-a")
    monkeypatch.setattr(CardDesk, "MEMORY_SECONDS", 0.1)

    async def scene():
        async with make() as manager:
            job = await ended(manager, "see")
            nvml.cards[0].pids.append(job.worker_pid)
            crashed = await ended(manager, "exit_now")
            assert crashed.error_type == "WorkerCrashed"
            assert (await ended(manager, "see")).result[0] != job.worker_pid
        assert f"memory of worker {job.worker_pid} on GPU 0 is not free after 0.1 s" in caplog.text

    run(scene())


def test_a_lost_card_is_given_to_nobody(nvml):
    nvml.cards.append(None)
    nvml.add("GPU-b"), nvml.add("GPU-c")

    async def scene():
        async with make() as manager:
            assert (await ended(manager, "see")).result[1] == "GPU-b"
            nvml.cards[1] = None  # falls off the bus while the app runs
            await ended(manager, "exit_now")
            assert (await ended(manager, "see")).result[1] == "GPU-c"
            nvml.cards[2] = None
            await ended(manager, "exit_now")
            job = await ended(manager, "see")
            assert job.error_type == "WorkersExhausted" and "no such card can be used now" in job.error
            nvml.cards[1] = SimpleNamespace(uuid="GPU-b", pids=[])
            assert (await ended(manager, "see")).result[1] == "GPU-b", "it is looked for again"

    run(scene())


def test_without_nvml_cards_are_named_by_number(nvml, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)

    async def scene():
        async with make(gpus=(3, 1)) as manager:
            assert (await ended(manager, "see")).result[1:] == ("3", "3", "PCI_BUS_ID")
        async with make() as manager:
            job = await ended(manager, "see")
            assert job.error_type == "WorkersExhausted" and "install nvidia-ml-py" in job.error

    run(scene())


@pytest.mark.parametrize("way", ["shutdown", "cancel"])
def test_a_driver_that_hangs_holds_neither_the_loop_nor_the_end(nvml, way):
    nvml.add("GPU-a")
    nvml.hangs.clear()

    async def scene():
        manager = make()
        job = await manager.start_job("see")
        await asyncio.sleep(0.05)
        assert job.status == "pending" and not manager.workers()
        if way == "cancel":
            await manager.cancel_job(job.id)
            assert (await manager.wait(job.id, 120)).status == "cancelled"
        await manager.shutdown()  # the driver answers only after it
        assert job.status in ("cancelled", "failed")
        nvml.hangs.set()

    run(scene())


def test_a_driver_that_hangs_is_told(nvml, monkeypatch):
    nvml.add("GPU-a")
    nvml.hangs.clear()
    monkeypatch.setattr(CardDesk, "LOOK_SECONDS", 0.05)

    async def scene():
        async with make() as manager:
            job = await ended(manager, "see")
            assert job.error_type == "WorkersExhausted" and "NVML has given no answer for 0.05 s" in job.error
            nvml.hangs.set()

    run(scene())


def test_a_successor_loads_when_the_card_is_free(nvml, tmp_path):
    "With a spare the successor takes over at once; but it does not load beside the old worker, which still unloads."
    nvml.add("GPU-a")

    async def scene():
        recycle = Recycle(max_jobs=1)
        environment = {"CARD_FOLDER": str(tmp_path)}
        async with make(recycle=recycle, standby_workers=1, environment=environment) as manager:
            results = [await (await manager.start_job("OneAtATime")) for _ in range(3)]
            assert len({pid for pid, _ in results}) == 3
            assert [seen for _, seen in results] == [None, False, False]

    run(scene())


def test_a_successor_gets_the_card_that_becomes_free(nvml, tmp_path):
    nvml.add("GPU-a"), nvml.add("GPU-b")

    async def scene():
        environment = {"CARD_FOLDER": str(tmp_path)}
        config = {"max_workers": 2, "standby_workers": 1, "environment": environment}
        async with make(recycle=Recycle(max_jobs=1), **config) as manager:
            first = await hold(manager, tmp_path, "first")
            await (await manager.start_job("OneAtATime"))
            assert (await ended(manager, "see")).result[1] == "1"
            assert await let_go(manager, tmp_path, "first", first) == "0"

    run(scene())
