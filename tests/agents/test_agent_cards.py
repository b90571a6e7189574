"""Workers behind an agent that have a card each; the cards are look-alikes, as NVML shows them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from agent_process import TOKEN, AgentProcess
from harness import run, until

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.backends.hosts import HostsBackend, Node
from cjm_worker_ext.errors import ConfigError
from cjm_worker_ext.integrations.resources import ProcessResourceManager

LOOK_ALIKES = str(Path(__file__).parent / "look_alikes")
PLUGINS = {name: f"card_plugins:{name}" for name in ("see", "see_and_wait")} | {"exit": "plugins_for_tests:exit_now"}


@pytest.fixture
def cards(tmp_path, monkeypatch):
    "Two look-alike cards, for agents that are started from now on; a file `held 0` there keeps memory in use."
    monkeypatch.setenv("CARD_FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([LOOK_ALIKES, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def make(*agents, max_workers=3, **options):
    backend = HostsBackend([agent.host for agent in agents], token=TOKEN, ping_seconds=0.05)
    config = WorkerConfig(max_workers=max_workers, cancel_grace_seconds=0.05, hold_after_crashes=0, standby_workers=0)
    return BaseJobManager("cards", plugins=PLUGINS, worker_config=config, backend=backend, **options)


async def hold(manager, folder, name):
    "A job that stays on its worker until its file is there."
    started = folder / f"{name} started"
    job = await manager.start_job("see_and_wait", started=str(started), go_on=str(folder / f"{name} go on"))
    await until(lambda: started.exists() and started.read_text(), what=name)
    return job


def devices(manager):
    return sorted(worker.device for worker in manager.workers())


def test_each_worker_has_a_card_and_the_next_one_waits_for_one(cards):
    async def scene():
        with AgentProcess("--gpus", "all", "--workers", "8") as agent:
            async with make(agent) as manager:
                jobs = [await hold(manager, cards, name) for name in "ab"]
                assert devices(manager) == ["GPU 0", "GPU 1"]
                third = await manager.start_job("see")
                await until(lambda: manager.health()["waits_for"], what="the reason")
                full = f"no machine has room: {agent.host}: no card is free, 2 of 2 are in use"
                assert manager.health()["waits_for"] == full and third.status == "pending"
                (cards / "a go on").touch()
                assert (await manager.wait(jobs[0].id, 120)).result == "0"
                assert (await manager.wait(third.id, 120)).result[1:] == ("0", "0", "PCI_BUS_ID"), (
                    "from its first import on"
                )
                (cards / "b go on").touch()
                assert (await manager.wait(jobs[1].id, 120)).result == "1"
        assert manager.health()["waits_for"] is None

    run(scene())


def test_figures_of_cards_and_workers_come_with_the_pings(cards):
    async def scene():
        with AgentProcess("--gpus", "1") as agent:
            resources = ProcessResourceManager(nodes=lambda: manager.nodes())
            manager = make(agent, max_workers=1, resource_manager=resources)
            async with manager:
                await hold(manager, cards, "a")
                await until(lambda: manager.nodes()[0].cards[0].free_bytes, what="the memory of the card")
                (node,) = manager.nodes()
                assert (node.lanes, node.busy) == (1, 1), "one worker for each card"
                assert node.cards == (("GPU 1", "Look <b>alike</b>", 80 << 30, 20 << 30, True),)
                assert node.figures["cpus"] == os.cpu_count() and node.figures["memory_total"] > 1 << 28
                assert manager.health()["nodes"][0]["cards"][0]["in_use"] is True
                (pid,) = (worker.pid for worker in manager.workers())
                assert pid > Node.PIDS and list(node.usage) == [pid]

                def measured():
                    (row,) = resources.snapshot(max_age_seconds=0).workers
                    return row.alive and row.rss_bytes and row.cpu_percent is not None and row

                await until(measured, what="figures of the worker")
                assert measured().pid == pid and measured().rss_bytes > 1 << 20
                assert resources.snapshot().nodes[0].host == agent.host
                (cards / "a go on").touch()

    run(scene())


def test_a_card_is_given_again_when_its_memory_is_free(cards):
    async def scene():
        with AgentProcess("--gpus", "0") as agent:
            async with make(agent, max_workers=1) as manager:
                job = await hold(manager, cards, "a")
                pid = int((cards / "a started").read_text())
                (cards / "held 0").write_text(str(pid))
                following = await manager.start_job("see")
                os.kill(pid, signal.SIGKILL)
                await until(lambda: not Path(f"/proc/{pid}").exists(), what="the end of the process")
                for _ in range(5):  # answers to pings
                    before = manager.nodes()[0].usage
                    await until(lambda before=before: manager.nodes()[0].usage != before, what="an answer")
                    assert manager.nodes()[0].busy == 1 and not following.status.is_final
                (cards / "held 0").unlink()
                assert (await manager.wait(following.id, 120)).result[1] == "0"
                assert (await manager.wait(job.id, 120)).error_type == "WorkerCrashed"

    run(scene())


def test_cuda_visible_devices_of_the_agent_says_what_all_is(cards, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    async def scene():
        with AgentProcess("--gpus", "all") as agent:
            async with make(agent) as manager:
                assert (await manager.wait((await manager.start_job("see")).id, 120)).result[1] == "1"
                assert manager.nodes()[0].lanes == 1

    run(scene())


@pytest.mark.parametrize("gpus, why", [("7", "there is no card 7"), ("0,0", "different numbers and UUIDs")])
def test_an_agent_without_its_cards_does_not_start(cards, gpus, why):
    program = "import sys; from cjm_worker_ext.commands.terminal import agent; sys.exit(agent())"
    command = [sys.executable, "-c", program, "--listen", "127.0.0.1:0", "--gpus", gpus]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and why in done.stderr, done


def test_cards_of_another_machine_are_named_where_its_agent_starts(cards):
    async def scene():
        backend = HostsBackend(["127.0.0.1:1"])
        manager = BaseJobManager("cards", plugins=PLUGINS, worker_config=WorkerConfig(gpus="all"), backend=backend)
        with pytest.raises(ConfigError, match="cjm-worker-agent --gpus all"):
            await manager.start_job("see")

    run(scene())
