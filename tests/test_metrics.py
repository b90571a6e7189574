"""Metrics, health and traces of an app with real workers, asked over HTTP as Prometheus and an orchestrator do."""

import asyncio
import json
import re
import time
from collections import Counter

import pytest
from harness import run, until
from opentelemetry import trace
from prometheus_client.parser import text_string_to_metric_families
from test_sse import Server

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.integrations.broadcasters import Broadcasters
from cjm_worker_ext.integrations.metrics import BUCKETS, MetricsBroadcaster, grafana_dashboard
from cjm_worker_ext.integrations.metrics_state import METRICS
from cjm_worker_ext.integrations.tracing import trace_jobs
from cjm_worker_ext.testing import use_in_process_backend

TRACE = "0af7651916cd43dd8448eb211c80319c"
REQUEST = trace.SpanContext(int(TRACE, 16), 7, is_remote=False, trace_flags=trace.TraceFlags(1))


@pytest.fixture
def server(tmp_path):
    server = Server(app="metrics_app:app", log=tmp_path / "server.log", SPANS=str(tmp_path / "spans.jsonl"))
    yield server
    server.stop()


def scrape(server):
    "Samples of a scrape: by name and the values of the labels, in the order of their names."
    answer = server.http.get(f"{server.url}/metrics/").raise_for_status()
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *(v for _, v in sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def scrape_until(server, condition, what):
    deadline = time.monotonic() + 120
    while not condition(found := scrape(server)):
        assert time.monotonic() < deadline, f"{what}: {found}"
        time.sleep(0.05)
    return found


def start(server, *jobs, wait=True, **headers):
    url = f"{server.url}/run{'?wait=1' if wait else ''}"
    return (
        server.http.post(url, json=[[name, params] for name, params in jobs], headers=headers).raise_for_status().json()
    )


def test_a_scrape_tells_how_jobs_and_workers_ended(server):
    ended = start(server, *[("double", {"n": n}) for n in range(20)], ("fails", {}), ("dies", {}))
    assert Counter(job["status"] for job in ended) == {"completed": 20, "failed": 2}
    (asleep,) = start(server, ("sleeps", {}), wait=False)
    found = scrape_until(server, lambda f: f.get(("cjm_jobs", "sleeps", "running", "text")) == 1, "a running job")
    assert found["cjm_workers", "running", "text"] == 1
    assert server.post(f"/cancel/{asleep['id']}") is True
    found = scrape_until(
        server, lambda f: f.get(("cjm_jobs_ended_total", "sleeps", "cancelled", "text")) == 1, "a cancel"
    )
    assert (
        found["cjm_jobs_submitted_total", "double", "text"]
        == found["cjm_jobs_ended_total", "double", "completed", "text"]
        == 20
    )
    assert found["cjm_jobs_ended_total", "double", "failed", "text"] == 0
    assert found["cjm_jobs_ended_total", "fails", "failed", "text"] == 1
    assert found["cjm_worker_exits_total", "SIGSEGV", "text"] == 1
    assert found["cjm_job_waiting_seconds_count", "double", "text"] == 20
    assert found["cjm_job_running_seconds_count", "double", "completed", "text"] == 20
    assert found["cjm_job_running_seconds_bucket", f"{BUCKETS[-1]}", "double", "completed", "text"] == 20
    assert found["cjm_queue_length", "text"] == 0
    assert found["cjm_jobs", "sleeps", "running", "text"] == 0
    assert found["cjm_worker_memory_bytes", "text"] > 1 << 20


def test_gauges_agree_with_the_manager(server):
    jobs = start(server, *[("sleeps", {})] * 6, wait=False)
    found = scrape_until(server, lambda f: f.get(("cjm_jobs", "sleeps", "running", "text")) == 2, "two running jobs")
    assert (found["cjm_queue_length", "text"], found["cjm_jobs", "sleeps", "pending", "text"]) == (4, 4)
    told = server.http.get(f"{server.url}/health/ready").json()["managers"][0]
    assert (told["queue_length"], told["running"], told["workers"]["running"]) == (4, 2, 2)
    for job in jobs:
        server.post(f"/cancel/{job['id']}")
    found = scrape_until(
        server, lambda f: f["cjm_queue_length", "text"] == f["cjm_workers", "running", "text"] == 0, "the end"
    )
    assert found["cjm_jobs_ended_total", "sleeps", "cancelled", "text"] == 6


def test_a_client_of_the_event_stream_is_counted(server):
    assert scrape(server)[("cjm_stream_clients",)] == 0
    sock = server.connect()
    scrape_until(server, lambda f: f[("cjm_stream_clients",)] == 1, "a client")
    sock.close()


def test_no_label_is_an_id_and_their_number_is_bounded(server):
    jobs = start(server, *[("double", {"n": n}) for n in range(30)], ("dies", {}))
    text = server.http.get(f"{server.url}/metrics/").text
    assert not [job for job in jobs if job["id"] in text]
    names = {name for family in text_string_to_metric_families(text) for s in family.samples for name in s.labels}
    assert names <= {"worker_type", "plugin", "state", "reason", "card", "le"}

    async def many():
        metrics = MetricsBroadcaster(max_plugins=5)
        for n in range(1000):
            await metrics.broadcast("job:queued", {"worker_type": "w", "plugin_id": f"p{n}", "job_id": f"{n}"})
        families = metrics.registry.collect()
        return {s.labels["plugin"] for family in families for s in family.samples if "plugin" in s.labels}

    assert asyncio.run(many()) == {"p0", "p1", "p2", "p3", "p4", "other"}


def test_an_orchestrator_is_told_when_to_send_no_more_and_when_to_restart(server):
    def ask(path):
        answer = server.http.get(f"{server.url}/health{path}")
        assert answer.headers["content-type"] == "application/json"
        return answer.status_code, answer.json()

    assert ask("/ready") == (200, ask("/ready")[1]) and ask("/ready")[1]["status"] == "ok"
    jobs = start(server, *[("sleeps", {})] * 25, wait=False)
    status, body = ask("/ready")
    (problem,) = body["managers"][0]["problems"]
    assert status == 503 and body["status"] == "unavailable" and re.fullmatch(r"2\d jobs are pending", problem)
    assert ask("/live")[0] == 200  # a restart would lose these jobs
    for job in jobs:
        server.post(f"/cancel/{job['id']}")
    assert ask("/ready")[0] == 200
    server.post("/shut")
    assert (ask("/live")[0], ask("/ready")[0]) == (503, 503)


def test_the_trace_of_a_request_goes_on_in_the_worker(server, tmp_path):
    jobs = ("double", {"n": 1}), ("halves", {"n": 8}), ("fails", {}), ("agrees", {"n": 5}), ("agrees", {"n": 6})
    ended = start(server, *jobs, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    assert [job["result"] for job in ended] == ["2", "[4, 2, 1]", "None", f"5 {TRACE}", f"6 {TRACE}"]
    spans = [json.loads(line) for line in (tmp_path / "spans.jsonl").read_text().splitlines()]
    assert {span["context"]["trace_id"] for span in spans} == {f"0x{TRACE}"}
    (request,) = [span for span in spans if span["name"] == "POST /run"]
    of_jobs = {
        span["attributes"]["cjm.job_id"]: span for span in spans if span["parent_id"] == request["context"]["span_id"]
    }
    assert of_jobs.keys() == {job["id"] for job in ended}
    assert of_jobs[ended[2]["id"]]["status"] == {"status_code": "ERROR", "description": "ValueError: no text"}
    assert "Failed to detach" not in server.log.read_text()


def test_a_job_outside_of_a_span_sends_no_trace():
    async def scene():
        manager = trace_jobs(BaseJobManager("text", plugins={"names": "plugins_for_metrics:has_opentelemetry"}))
        async with manager:
            assert await manager.run("names") is False
            with trace.use_span(trace.NonRecordingSpan(REQUEST)):
                assert await manager.run("names") is True  # the same worker: now there is something to carry

    run(scene())


# the dashboard


def test_each_figure_that_the_dashboard_names_exists():
    dashboard = grafana_dashboard()
    exprs = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    exprs += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    known = {m.name + ending: m for m in METRICS.values() for ending in endings[m.kind]}
    named = {name for expr in exprs for name in re.findall(r"\bcjm_\w+", expr)}
    assert named - known.keys() == set()
    assert {known[name].name for name in named} == METRICS.keys(), "a figure that no panel shows"
    for expr in exprs:
        (metric, *_) = [known[name] for name in re.findall(r"\bcjm_\w+", expr)]
        used = re.findall(r'(\w+)=~?"', expr) + [
            x.strip() for by in re.findall(r"by \(([^)]*)\)", expr) for x in by.split(",")
        ]
        assert set(used) <= {*metric.labels, "le"}, expr
        assert expr.count("(") == expr.count(")") and expr.count("{") == expr.count("}")


def test_the_dashboard_has_what_grafana_needs():
    dashboard = grafana_dashboard()
    assert json.loads(json.dumps(dashboard)) == dashboard
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= dashboard.keys()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    places = Counter()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] and place["x"] + place["w"] <= 24
        places.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
        legend = {label for t in panel["targets"] for label in re.findall(r"{{(\w+)}}", t["legendFormat"])}
        assert all(label in METRICS_LABELS for label in legend), panel["title"]
    assert max(places.values()) == 1, "two panels lie on each other"


METRICS_LABELS = {label for metric in METRICS.values() for label in metric.labels} | {"instance"}


# several broadcasters of one manager


class Noting:
    def __init__(self):
        self.seen = []

    async def broadcast(self, event_type, data):
        self.seen.append(event_type)


class Raising:
    async def broadcast(self, event_type, data):
        data.clear()
        raise OSError("away")


class Hanging(Noting):
    async def broadcast(self, event_type, data):
        await super().broadcast(event_type, data)
        await asyncio.Event().wait()


def double(n):
    return 2 * n


def test_one_broadcaster_that_raises_and_one_that_hangs_cost_the_others_nothing():
    async def scene():
        before, hanging, after = Noting(), Hanging(), Noting()
        metrics = MetricsBroadcaster()
        events = Broadcasters([before, Raising(), hanging, metrics, after])
        async with BaseJobManager("text", plugins={"double": double}, event_broadcaster=events) as manager:
            assert [await manager.run("double", n=n) for n in range(10)] == [2 * n for n in range(10)]
            await until(lambda: after.seen.count("job:completed") == 10)
        assert before.seen == after.seen and before.seen[-1] == "worker:stopped", after.seen
        assert len(hanging.seen) == 1
        labels = {"worker_type": "text", "plugin": "double", "state": "completed"}
        assert metrics.registry.get_sample_value("cjm_jobs_ended_total", labels) == 10

    run(scene())


def test_nobody_waits_again_for_one_that_hangs():
    async def scene():
        hanging, noting = Hanging(), Noting()
        events = Broadcasters([hanging, noting], patience_seconds=0.01, timeout_seconds=600)
        await events.broadcast("job:queued", {})
        events._patience = 600
        for number in range(20):
            await events.broadcast(f"job:{number}", {})
        await until(lambda: len(noting.seen) == 21)

    run(scene())


def test_a_call_that_hangs_is_ended_and_the_next_one_made():
    async def scene():
        hanging = Hanging()
        events = Broadcasters([hanging], patience_seconds=0.01, timeout_seconds=0.02)
        for number in range(3):
            await events.broadcast(f"job:{number}", {})
        await until(lambda: len(hanging.seen) == 3)

    run(scene())


def test_a_traced_manager_works_with_a_backend_that_carries_no_traces():
    async def scene():
        with use_in_process_backend(), trace.use_span(trace.NonRecordingSpan(REQUEST)):
            async with trace_jobs(BaseJobManager("text", plugins={"double": double})) as manager:
                assert await manager.run("double", n=2) == 4

    run(scene())


def test_what_is_sent_last_arrives_before_the_shutdown_returns():
    async def scene():
        first, second = Noting(), Noting()
        async with BaseJobManager(
            "text", plugins={"double": double}, event_broadcaster=Broadcasters([first, second])
        ) as m:
            await m.run("double", n=1)
        assert first.seen == second.seen and first.seen[-1] == "worker:stopped"

    run(scene())


def test_what_hangs_on_one_loop_does_not_hang_on_another():
    async def scene():
        hanging = Hanging()
        events = Broadcasters([hanging], patience_seconds=0.01, timeout_seconds=600)
        await events.broadcast("job:here", {})
        await asyncio.to_thread(asyncio.run, events.broadcast("job:there", {}))
        assert hanging.seen == ["job:here", "job:there"]

    run(scene())


def test_two_managers_on_two_loops_share_broadcasters():
    noting = Noting()
    events = Broadcasters([noting])

    async def scene():
        async with BaseJobManager("text", plugins={"double": double}, event_broadcaster=events) as manager:
            await manager.run("double", n=1)

    async def both():
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, scene()) for _ in range(2)))

    run(both())
    assert noting.seen.count("job:completed") == 2
