"An app that drains when it is stopped; `test_drain.py` runs it under uvicorn."

import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

from harness import targets
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.errors import ManagerClosed


@asynccontextmanager
async def lifespan(app):
    async with BaseJobManager("drain", plugins=targets("touch_and_wait")) as manager:
        manager.drain_on(signal.SIGTERM, deadline=float(os.environ["DEADLINE"]))
        app.state.manager = manager
        yield
    lines = [f"{job.status} {job.error_type} {job.error}\n" for job in manager.get_all_jobs()]
    Path(os.environ["REPORT"]).write_text("".join(lines))


async def start(request):
    params = await request.json()
    return JSONResponse((await request.app.state.manager.start_job("touch_and_wait", **params)).id)


async def look(request):
    return JSONResponse(request.app.state.manager.get_job(request.path_params["job"]).status)


async def refused(request, error):
    return JSONResponse(str(error), 503)


app = Starlette(
    routes=[Route("/jobs", start, methods=["POST"]), Route("/jobs/{job}", look)],
    exception_handlers={ManagerClosed: refused},
    lifespan=lifespan,
)
