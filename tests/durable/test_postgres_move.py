"""The page about moving to PostgreSQL: its program copies jobs."""

import re
from pathlib import Path

from cjm_worker_ext.extensions.stores import JobChange, StoredJob
from cjm_worker_ext.jobs import utc_now
from cjm_worker_ext.stores.postgres import PostgresJobStore
from cjm_worker_ext.stores.sqlite import SQLiteJobStore

PAGE = Path(__file__).resolve().parents[2] / "nbs" / "howto" / "move_to_postgres.md"


def test_the_jobs_of_an_sqlite_store_are_copied(postgres, tmp_path):
    program: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S):
        exec(block, program)
    source, target = SQLiteJobStore(tmp_path / "jobs.db"), PostgresJobStore(postgres.dsn())
    owner = source.open("text")
    statuses = ("pending", "running", "completed", "failed", "cancelled")
    jobs = [
        StoredJob(
            f"j{n:04}", "text", "p", utc_now(1e9 + n), status=statuses[n % 5], owner=owner, params=f'{{"n": {n}}}'
        )
        for n in range(1200)
    ]
    source.write(owner, [JobChange(job) for job in jobs])
    source.close(owner)
    assert program["copy_jobs"](source, target) == 1200  # type: ignore[operator]
    assert program["copy_jobs"](source, target) == 0  # type: ignore[operator]
    found = {job.id: job for job in target.find([job.id for job in jobs])}
    assert {job.id: job.params for job in jobs} == {job.id: job.params for job in found.values()}
    assert [job.status for job in found.values() if job.status == "running"] == []
    owner = target.open("text")
    claimed = target.claim(owner, 1000, due_before=1e12)
    assert len(claimed) == 240 and {job.status for job in claimed} == {"pending"}
    target.close(owner)
