"""`ProcessResourceManager` on real processes: its cost, its threads, and pids that are given again."""

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from cjm_worker_ext.extensions.contract_tests import ResourceManagerTests
from cjm_worker_ext.integrations.resources import ProcessResourceManager
from cjm_worker_ext.integrations.resources_gpu import GpuReader


class TestContracts(ResourceManagerTests):
    "The promises of the protocol, judged by the library's own suite."

    def make(self) -> ProcessResourceManager:
        return ProcessResourceManager()

    def close(self, manager: ProcessResourceManager) -> None:
        manager.close()

    def state(self, manager: ProcessResourceManager, pid: int) -> dict | None:
        rows = manager.find(pid=pid)
        return asdict(rows[0]) if rows else None


FAMILY = """
import subprocess, sys
sleep = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
children = [subprocess.Popen(sleep, stdin=subprocess.PIPE) for _ in range(int(sys.argv[1]))]
print("ready", flush=True)
sys.stdin.read()
for child in children:
    child.communicate()
"""


@pytest.fixture
def start():
    running = []

    def start_family(children: int = 0) -> subprocess.Popen:
        command = [sys.executable, "-S", "-c", FAMILY, str(children)]
        process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, start_new_session=True)
        running.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start_family
    for process in running:
        process.communicate()


class OpenedFiles:
    """Counts the files that Python opens for a measurement: its cost, and the same on every machine.

    Other tests may start processes meanwhile. The first look at each of these does not count, and any later one does.
    """

    def __init__(self) -> None:
        self._opened: list[str] | None = None
        self._known: set[str] = set()
        sys.addaudithook(self._note)  # it stays for the life of the process

    def _note(self, event: str, args: tuple) -> None:
        if self._opened is not None and event == "open" and threading.current_thread() is threading.main_thread():
            self._opened.append(str(args[0]))

    def of_a_measurement(self, resources: ProcessResourceManager) -> int:
        self._opened = []
        resources.snapshot(max_age_seconds=0)
        opened, self._opened = self._opened, None
        of_processes = {path: path.split("/")[2] for path in opened if re.match(r"/proc/[0-9]+/", path)}
        counted = [path for path in opened if path not in of_processes or of_processes[path] in self._known]
        self._known |= {*of_processes.values()}
        return len(counted)


@pytest.mark.skipif(sys.platform != "linux", reason="counts files in /proc")
@pytest.mark.parametrize(("workers", "children"), [(1, 0), (1, 1), (8, 1)])
def test_a_measurement_costs_a_few_files_for_each_process_of_a_worker(start, workers, children):
    """However many other processes the machine has."""
    others = [start() for _ in range(20)]
    resources = ProcessResourceManager()
    for _ in range(workers):
        resources.register_worker(start(children).pid, "test")
    assert all(worker.processes == 1 + children for worker in resources.snapshot().workers)  # and sessions are known
    files = OpenedFiles()
    assert files.of_a_measurement(resources), "whose processes are known now"
    before = files.of_a_measurement(resources)
    assert before <= 10 * workers * (1 + children) + 30, before
    others += [start() for _ in range(20)]
    files.of_a_measurement(resources)  # looks each new session up once
    assert files.of_a_measurement(resources) == before


def test_nothing_runs_and_nothing_is_read_when_nobody_asks(start, monkeypatch):
    resources = ProcessResourceManager(interval_seconds=0.01)
    resources.register_worker(start().pid, "test")
    before = threading.active_count()
    with resources.sampling(), resources.sampling():
        assert threading.active_count() == before + 1
    resources.close()
    assert threading.active_count() == before

    monkeypatch.setattr("cjm_worker_ext.integrations.resources.measure", lambda *_: pytest.fail("measured"))
    resources.update_worker_state(os.getpid(), status="idle")
    resources.find(status="idle")
    resources.history()


def test_sampling_keeps_its_interval_however_many_ask(start):
    resources = ProcessResourceManager(interval_seconds=0.2)
    resources.register_worker(start().pid, "test")
    began = time.monotonic()
    for _ in range(30):  # pages come and go
        with resources.sampling(), resources.sampling():
            resources.snapshot()
    resources.close()
    assert len(resources.history()) <= 1 + (time.monotonic() - began) / 0.2


def test_looks_leave_no_descriptors_behind(start):
    resources = ProcessResourceManager()
    resources.register_worker(start(2).pid, "test")
    resources.snapshot(uss=True)
    before = psutil.Process().num_fds()
    for _ in range(50):
        resources.snapshot(max_age_seconds=0, uss=True)
    assert psutil.Process().num_fds() == before


def test_managers_report_while_looks_are_taken(start):
    resources = ProcessResourceManager(interval_seconds=0.001, history_length=10)
    pids = [start().pid for _ in range(3)]
    errors = []

    def report(pid: int) -> None:
        try:
            for turn in range(300):
                resources.register_worker(pid, "test")
                resources.update_worker_state(pid, job_id=str(turn))
                resources.find(job_id=str(turn))
                resources.unregister_worker(pid)
        except Exception as e:  # noqa: BLE001  - handed to the main thread, which fails
            errors.append(e)

    with resources.sampling():
        threads = [threading.Thread(target=report, args=(pid,)) for pid in pids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    resources.close()
    assert errors == []
    assert resources.snapshot(max_age_seconds=0).workers == ()


@pytest.mark.skipif(not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK), reason="cannot choose the next pid here")
def test_a_pid_given_again_is_not_the_worker(start):
    resources = ProcessResourceManager()
    for _ in range(50):  # another process may take the number first
        worker = start()
        pid = worker.pid
        resources.register_worker(pid, "test")
        assert resources.snapshot(max_age_seconds=0).workers[-1].alive
        time.sleep(0.02)  # start times count in hundredths of a second
        worker.communicate()
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        newcomer = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=-1, start_new_session=True)
        try:
            if newcomer.pid == pid:
                (row,) = resources.snapshot(max_age_seconds=0).workers
                assert (row.pid, row.alive, row.rss_bytes, row.processes) == (pid, False, None, None)
                resources.register_worker(pid, "test")  # and the newcomer may be registered in its own right
                assert resources.snapshot(max_age_seconds=0).workers[0].alive
                return
        finally:
            newcomer.communicate()
            resources.unregister_worker(pid)
    pytest.skip("the pid was never given again")


@pytest.mark.parametrize("module", ["resources_processes", "resources", "resources_admission"])
def test_without_psutil_the_extra_is_named(module):
    code = f"import sys; sys.modules['psutil'] = None\nimport cjm_worker_ext.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError" in done.stderr
    assert "pip install 'cjm-worker-ext[resources]'" in done.stderr


def test_limits_and_gpu_need_no_package():
    code = "import sys; sys.modules['psutil'] = sys.modules['pynvml'] = None\n"
    code += "from cjm_worker_ext.integrations import resources_gpu, resources_limits\nprint(resources_gpu.GpuReader().read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_a_snapshot_while_sampling_does_not_wait_for_a_slow_look():
    class SlowCards(GpuReader):
        looking, go_on, slow = threading.Event(), threading.Event(), False

        def read(self):
            if self.slow:
                self.looking.set()
                assert self.go_on.wait(120)

    cards = SlowCards()
    resources = ProcessResourceManager(interval_seconds=0.001, gpu=cards)
    resources.snapshot()
    cards.slow = True
    with resources.sampling():
        assert cards.looking.wait(120)
        told = []
        with resources.sampling(told.append):  # would wait for 30 seconds, and fail the measurement
            resources.register_worker(os.getpid(), "test")
            assert resources.snapshot().workers[0].pid == os.getpid()
            assert len(told) == 1
        cards.go_on.set()
    resources.close()


def test_two_who_ask_at_once_share_one_look():
    class Cards(GpuReader):
        looking, go_on = threading.Event(), threading.Event()

        def read(self):
            self.looking.set()
            assert self.go_on.wait(120)

    cards = Cards()
    resources = ProcessResourceManager(gpu=cards)
    askers = [threading.Thread(target=resources.snapshot, args=(60,)) for _ in range(2)]
    for asker in askers:
        asker.start()
    assert cards.looking.wait(120)
    cards.go_on.set()
    for asker in askers:
        asker.join(120)
    assert len(resources.history()) == 1


@pytest.fixture
def hidden_proc(monkeypatch, tmp_path):
    "A `/proc` with processes and nothing else, as a systemd service with `ProcSubset=pid` sees it."

    def show(*pids):
        for pid in ("self", *pids):
            (tmp_path / str(pid)).symlink_to(f"/proc/{pid}")
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path), raising=False)

    return show


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_without_the_kernels_figures_they_are_unknown_and_nothing_fails(start, hidden_proc):
    worker, alone = start(1), start()
    children = psutil.Process(worker.pid).children()
    hidden_proc(os.getpid(), worker.pid, alone.pid, *(child.pid for child in children))
    with pytest.raises(FileNotFoundError):
        psutil.virtual_memory()
    resources = ProcessResourceManager()
    for pid in (worker.pid, alone.pid, os.getpid()):  # this test is a worker that leads no session
        resources.register_worker(pid, "test")
    resources.update_worker_state(worker.pid, status="idle")
    snapshot = resources.snapshot(uss=True)
    assert [row.alive for row in snapshot.workers] == [True] * 3
    assert (snapshot.workers[0].processes, snapshot.workers[0].started_at) == (2, None)
    assert snapshot.workers[0].rss_bytes and snapshot.workers[0].status == "idle"
    room = resources.memory_available()
    assert room.limit_source == "unknown" or room.limit_source.startswith("cgroup")
    with resources.sampling():
        assert resources.snapshot().memory == room or snapshot.memory.available_bytes is not None
    resources.close()
    for pid in (worker.pid, alone.pid):
        resources.unregister_worker(pid)
