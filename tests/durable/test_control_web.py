"""A browser on any web process sees and cancels each job that it may, and no other, also if the job's process dies."""

import json
import os
import re
import time

import pytest
from test_sse import Server


@pytest.fixture
def servers(tmp_path):
    found = []
    for n in range(3):
        log = tmp_path / f"server{n}.log"
        found.append(Server(app="durable.control_web_app:app", log=log, PLACES=str(tmp_path)))
    yield found
    for server in found:
        server.stop()


def ask(server, user, path, **options):
    method = "POST" if "data" in options or "json" in options else "GET"
    return server.http.request(method, server.url + path, headers={"cookie": f"user={user}"}, **options)


def jobs(server, user):
    return {job["job_id"]: job for job in ask(server, user, "/jobs/state").json()["jobs"]}


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about within 60 s"
        time.sleep(0.02)
    return found


def cancel(server, user, job, token):
    form = {"worker_type": "text", "job_id": job, "token": token}
    return ask(server, user, "/jobs/cancel", data=form, follow_redirects=False).status_code


def ends(server, user, since):
    "Ids of jobs whose end this user hears of in this process, until the next end."
    headers = {"cookie": f"user={user}", "last-event-id": since}
    address = server.url + "/events?event=job:cancelled&event=job:completed&event=job:failed"
    with server.http.stream("GET", address, headers=headers) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and "job_id" in line:
                return json.loads(line[6:])["job_id"]


def test_each_process_shows_streams_and_cancels_what_the_user_may(servers, tmp_path):
    one, two, three = servers
    started = {user: ask(one, user, "/start", json={}).json() for user in ("ann", "bob", "cyd")}
    ids = {user: found["job"] for user, found in started.items()}
    since = started["ann"]["since"]
    for server in servers:  # each has one worker, so the three jobs run in three processes
        wait_for(lambda server=server: [j["status"] for j in jobs(server, "ann").values()] == ["running"] * 3)
        found = jobs(server, "ann")
        assert {job for job, row in found.items() if row["can_cancel"]} == {ids["ann"]}
        assert ask(server, "ann", f"/stream/{ids['ann']}").json() == {"chunk": "0"}
        assert ask(server, "ann", f"/stream/{ids['bob']}").status_code == 404
        assert server.http.get(server.url + "/jobs/state").status_code == 403
        assert server.http.get(server.url + "/events").status_code == 403
    (token,) = {re.search(r'name="token" value="([^"]+)"', ask(s, "ann", "/jobs/").text)[1] for s in servers}
    for server in servers:
        assert cancel(server, "bob", ids["ann"], token) == 403
        assert cancel(server, "bob", ids["ann"], "another") == 403
        assert jobs(server, "bob")[ids["ann"]]["status"] == "running"
    # each in a process that most likely has another job, with the token of whichever page was read
    for server, user in zip((two, three, one), ids, strict=True):
        assert cancel(server, user, ids[user], token) == 303
    for server in servers:
        wait_for(lambda server=server: {j["status"] for j in jobs(server, "ann").values()} == {"cancelled"})
        for user, job in ids.items():
            assert ends(server, user, since) == job  # the only end that this user hears of


def test_the_job_of_a_killed_process_ends_on_every_page(servers):
    one, two, three = servers
    job = ask(one, "ann", "/start", json={}).json()["job"]
    wait_for(lambda: [j["status"] for j in jobs(two, "ann").values()] == ["running"])
    wait_for(lambda: [j["status"] for j in jobs(three, "ann").values()] == ["running"])
    owner = next(s for s in servers if any(w["job_id"] == job for w in ask(s, "ann", "/jobs/state").json()["workers"]))
    os.killpg(owner.process.pid, 9)
    for server in {one, two, three} - {owner}:
        row = wait_for(lambda server=server: (j := jobs(server, "ann")[job])["status"] == "failed" and j)
        assert row["error_type"] == "JobLost"
