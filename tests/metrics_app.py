"""The app that `test_metrics.py` runs under uvicorn: metrics, health and an event stream of a manager with real workers."""

import contextlib
import os
from pathlib import Path

from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.integrations.broadcasters import Broadcasters
from cjm_worker_ext.integrations.health import JobHealth
from cjm_worker_ext.integrations.metrics import MetricsBroadcaster
from cjm_worker_ext.integrations.resources import ProcessResourceManager
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.integrations.tracing import trace_jobs


def write_spans():
    "Configure the SDK of this process, app or worker: each span is one line of a file."
    out = Path(os.environ["SPANS"]).open("a")
    provider = TracerProvider()
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(None) + "\n")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


write_spans()
resources, events = ProcessResourceManager(), SSEBroadcaster()
metrics = MetricsBroadcaster(resources=resources, stream=events)
manager = trace_jobs(
    BaseJobManager(
        "text",
        worker_config=WorkerConfig(max_workers=2, max_pending_jobs=50, cancel_grace_seconds=0.1, hold_after_crashes=0),
        resource_manager=resources,
        event_broadcaster=Broadcasters([events, metrics]),
        plugins={
            name: f"plugins_for_metrics:{name}" for name in ("double", "dies", "fails", "sleeps", "agrees", "halves")
        },
    ),
    setup="metrics_app:write_spans",
)


async def run(request):
    "Start the jobs that the body lists, within a span of the request, and wait for those that end."
    with trace.get_tracer("app").start_as_current_span("POST /run", propagate.extract(request.headers)):
        jobs = [await manager.submit_job(plugin, params) for plugin, params in await request.json()]
    if "wait" in request.query_params:
        jobs = [await manager.wait(job, timeout=120) for job in jobs]
    return JSONResponse([{"id": job.id, "status": str(job.status), "result": str(job.result)} for job in jobs])


async def cancel(request):
    return JSONResponse(await manager.cancel_job(request.path_params["job"]))


async def shut(request):
    await manager.shutdown()
    return JSONResponse(True)


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        yield


app = Starlette(
    lifespan=life,
    routes=[
        Route("/run", run, methods=["POST"]),
        Route("/cancel/{job}", cancel, methods=["POST"]),
        Route("/shut", shut, methods=["POST"]),
        Route("/events", events.endpoint),
        Mount("/metrics", metrics.endpoint),
        Mount("/health", JobHealth(manager, max_queue_length=20)),
    ],
)
