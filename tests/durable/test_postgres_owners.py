"""Owners on a PostgreSQL server that are killed, stopped and cut off, and a server that is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from harness import until_now
from postgres_server import PostgresServer

from cjm_worker_ext.errors import StoreFailed
from cjm_worker_ext.extensions.stores import JobChange, StoredJob
from cjm_worker_ext.jobs import utc_now
from cjm_worker_ext.stores import postgres as postgres_module
from cjm_worker_ext.stores.postgres import PostgresJobStore

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells about processes of this machine")


@pytest.fixture
def dsn(postgres: PostgresServer) -> str:
    return postgres.dsn()


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for one in started:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)  # with what it has forked
        one.wait()


@pytest.fixture
def owner_process(dsn, processes):
    "Starts an owner that runs a job in a process; see postgres_owner.py."

    def start(name: str, *options: str) -> subprocess.Popen[str]:
        program = Path(__file__).with_name("postgres_owner.py")
        command = [sys.executable, str(program), dsn, name, *(options or ("here",))]
        one = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        processes.append(one)
        assert one.stdout is not None and one.stdout.readline(), "the owner did not open the store"
        return one

    return start


class Looker:
    "An owner in this process."

    def __init__(self, dsn: str) -> None:
        self.dsn, self.store = dsn, PostgresJobStore(dsn, lease_seconds=2)
        self.owner = self.store.open("text")

    def recovered(self) -> list[str]:
        return [job.id for job in self.store.recover(self.owner)]

    def job(self, name: str, **fields) -> StoredJob:
        return StoredJob(name, "text", "p", utc_now(), **({"owner": self.owner} | fields))

    def never(self, seconds: float) -> None:
        "Nobody is taken for dead, however often we look."
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.recovered() == []
            time.sleep(0.05)


@pytest.fixture
def looker(dsn) -> Iterator[Looker]:
    one = Looker(dsn)
    yield one
    one.store.close(one.owner)


@linux
def test_killed_owner_is_dead_at_once(looker, owner_process):
    one = owner_process("j1")
    looker.never(0.2)
    one.kill()
    one.wait()
    assert looker.recovered() == ["j1"]


@linux
def test_forked_child_does_not_keep_its_parent_alive(looker, owner_process):
    one = owner_process("j1", "here", "fork")
    one.kill()
    one.wait()
    assert looker.recovered() == ["j1"]


def test_forked_child_keeps_no_lock_on_another_machine(looker, owner_process):
    one = owner_process("j1", "elsewhere", "fork")
    one.kill()
    one.wait()
    assert until_now(looker.recovered, 120) == ["j1"]


@linux
def test_stopped_owner_is_not_dead(looker, owner_process, postgres):
    one = owner_process("j1")
    one.send_signal(signal.SIGSTOP)
    looker.never(2.5)
    postgres.crash()  # its session ends, and it cannot come back
    postgres.start()
    until_now(lambda: _works(looker), 120)
    looker.never(3)
    one.send_signal(signal.SIGCONT)
    looker.never(0.5)
    one.kill()
    one.wait()
    assert looker.recovered() == ["j1"]


def _works(looker: Looker) -> bool:
    try:
        looker.store.recover(looker.owner)
    except StoreFailed:
        return False
    return True


def test_stopped_owner_on_another_machine_is_not_dead(looker, owner_process):
    one = owner_process("j1", "elsewhere")
    one.send_signal(signal.SIGSTOP)
    looker.never(3)  # its lease has run out, and its session has the lock


def test_killed_owner_on_another_machine_is_dead_after_its_lease(looker, owner_process):
    one = owner_process("j1", "elsewhere")
    one.kill()
    one.wait()
    looker.never(1.0)
    assert until_now(looker.recovered, 120) == ["j1"]


def test_owner_whose_connection_is_cut_comes_back_within_its_lease(looker, owner_process):
    owner_process("j1", "elsewhere")
    for _ in range(5):
        _cut_all_but(looker)
        looker.never(0.5)


def _cut_all_but(looker: Looker) -> None:
    with looker.store._session.using() as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_owner_that_was_away_too_long_has_lost_its_jobs_and_nothing_else(looker, dsn, monkeypatch):
    monkeypatch.setattr("cjm_worker_ext.stores.postgres.process_state", lambda identity: "")  # as on other machines
    away = Looker(dsn)
    job = away.job("j1", status="running")
    away.store.write(away.owner, [JobChange(job)])
    away.store._session._db.close()  # and it says nothing
    looker.never(1.0)
    assert until_now(looker.recovered, 120) == ["j1"]

    refused = away.store.write(away.owner, [JobChange(replace(job, status="completed"), "running")])
    assert refused == {"j1": ""}
    away.store.write(away.owner, [JobChange(away.job("j2", status="running"))])  # it lives again
    looker.never(2.5)
    away.store._session.close()
    assert until_now(looker.recovered, 120) == ["j2"]


def test_jobs_written_before_a_crash_of_the_server_are_there_after_it(looker, postgres):
    store, owner = looker.store, looker.owner
    store.write(owner, [JobChange(looker.job(f"j{n}")) for n in range(10)])
    postgres.crash()
    for call in (
        lambda: store.write(owner, [JobChange(looker.job("x"))]), lambda: store.claim(owner, 1, time.time()),
        lambda: store.recover(owner), lambda: store.asked(owner), lambda: store.find(["j1"]), lambda: store.ask("j1", "c"),
    ):  # fmt: skip
        with pytest.raises(StoreFailed, match="wait until the server is up again|see that the server runs"):
            call()
    postgres.start()
    until_now(lambda: _works(looker), 120)
    assert len(store.find([f"j{n}" for n in range(10)])) == 10
    assert store.find(["x"]) == []
    assert store.write(owner, [JobChange(looker.job("x"))]) == {}
    assert store.ask("j1", "cancel") and store.asked(owner) == [("j1", "cancel")]


def test_a_write_that_is_tried_again_is_done_once(looker, postgres):
    "The server dies at any moment of a call, and perhaps the call was done: then trying again is no refusal."
    store, owner = looker.store, looker.owner
    stop, written = threading.Event(), []

    def restart() -> None:
        for _ in range(6):
            postgres.crash()
            postgres.start()
            if stop.wait(0.15):
                return

    thread = threading.Thread(target=restart)
    thread.start()
    failures = 0
    try:
        number = 0
        while thread.is_alive():
            jobs = [looker.job(f"j{number}-{i}", key=f"k{number}-{i}") for i in range(5)]
            number += 1
            for status, was in (("pending", ""), ("running", "pending"), ("completed", "running")):
                changes = [JobChange(replace(job, status=status), was) for job in jobs]
                while True:
                    try:
                        assert store.write(owner, changes) == {}
                        break
                    except StoreFailed:
                        failures += 1
                        time.sleep(0.01)
            written += jobs
    finally:
        stop.set()
        thread.join()
    assert failures
    found = store.find([job.id for job in written])
    assert len(found) == len(written) and {job.status for job in found} == {"completed"}


def test_answer_that_got_lost_is_no_refusal(looker):
    "The same at the worst moment: the server has committed, and its answer does not arrive."
    store, owner, job = looker.store, looker.owner, looker.job("j1", key="k")
    for status, was in (("pending", ""), ("running", "pending"), ("failed", "running")):
        change = JobChange(replace(job, status=status), was)
        _lose_the_next_answer(store)
        with pytest.raises(StoreFailed):
            store.write(owner, [change])
        assert store.write(owner, [change]) == {}
        assert store.write(owner, [change]) == {"j1": "" if was else "j1"}, "it is refused only once"


def test_change_that_was_to_follow_a_lost_one_is_done(looker):
    "What was not written is joined with what comes next: it says the status before both."
    store, owner = looker.store, looker.owner
    job, other = looker.job("j1", key="k"), looker.job("j2")
    changes = [JobChange(job), JobChange(other)]
    _lose_the_next_answer(store)
    with pytest.raises(StoreFailed):
        store.write(owner, changes)
    assert store.write(owner, [JobChange(replace(job, status="running"))]) == {}  # one by one
    second = PostgresJobStore(looker.dsn)
    (claimed,) = second.claim(second.open("text"), 5, time.time())
    assert store.write(owner, [JobChange(other)]) == {}, "it was submitted, and somebody has it"
    assert claimed.id == "j2" and store.find(["j2"])[0].owner == claimed.owner

    _lose_the_next_answer(store)
    with pytest.raises(StoreFailed):
        store.write(owner, [JobChange(replace(job, status="pending", attempts=1), "running")])
    assert store.write(owner, [JobChange(replace(job, status="failed", attempts=1), "running")]) == {}
    assert store.find(["j1"])[0].status == "failed"
    assert not store._doubtful
    second.close(claimed.owner)


def _lose_the_next_answer(store: PostgresJobStore) -> None:
    write = store._write

    def lost(*arguments):
        store._write = write
        write(*arguments)
        raise StoreFailed("the connection is lost")

    store._write = lost


def test_last_transaction_of_a_dead_owner_is_waited_for(looker, dsn, monkeypatch):
    "It may still be at work on the server when its process is gone; what it adds must not be left without an owner."
    monkeypatch.setattr("cjm_worker_ext.stores.postgres.process_state", lambda identity: "gone")
    dead = Looker(dsn)
    dead.store.write(dead.owner, [JobChange(dead.job("j1", status="running"))])
    with dead.store._session.using() as db, db.transaction():
        dead.store._stay(db, dead.owner)
        db.execute(
            "UPDATE jobs SET id = 'j2' WHERE id = 'j1'"  # stands for all that a transaction does
        )
        assert looker.recovered() == []
    assert looker.recovered() == ["j2"]
    dead.store._session.close()


def test_two_processes_make_the_tables_at_once(dsn):
    stores = [PostgresJobStore(dsn) for _ in range(4)]
    owners, errors = [], []

    def open_one(store: PostgresJobStore) -> None:
        try:
            owners.append((store, store.open("text")))
        except StoreFailed as e:
            errors.append(e)

    threads = [threading.Thread(target=open_one, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors and len(owners) == 4
    for store, owner in owners:
        store.close(owner)


def test_tables_are_upgraded_below_an_app_that_has_jobs_in_flight(dsn, monkeypatch):
    "The app of the earlier release goes on, and what it leaves is taken over."
    with monkeypatch.context() as earlier:
        earlier.setattr(postgres_module, "UPGRADES", postgres_module.UPGRADES[:1])
        old = Looker(dsn)
        jobs = [old.job(name, status=status) for name, status in (("runs", "running"), ("waits", "pending"))]
        old.store.write(old.owner, [JobChange(job) for job in jobs])
    new = Looker(dsn)
    assert new.recovered() == []
    assert not old.store.hold("more")  # its release notes nothing: there was no table
    ended = replace(jobs[0], status="completed", result="1")
    more = old.job("more", status="running")
    assert old.store.write(old.owner, [JobChange(ended, "running"), JobChange(more)]) == {}
    assert [job.id for job in new.store.claim(new.owner, 9, time.time())] == ["waits"]
    old.store.close(old.owner)
    assert sorted(new.recovered()) == ["more", "runs"]
    new.store.close(new.owner)


def test_wish_arrives_without_a_question(looker, dsn):
    "An owner that asks fifty times a second sends nothing to the server."
    store, owner = looker.store, looker.owner
    store.write(owner, [JobChange(looker.job("j1", status="running"))])
    assert store.asked(owner) == []
    with store._session.using() as db:
        sent = []
        execute, db.execute = db.execute, lambda *a, **k: sent.append(a) or execute(*a, **k)
        for _ in range(50):
            assert store.asked(owner) == []
        assert sent == []
    PostgresJobStore(dsn).ask("j1", "cancel")
    assert until_now(lambda: store.asked(owner), 5) == [("j1", "cancel")]
    assert len(sent) == 1
