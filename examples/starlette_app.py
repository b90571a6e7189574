"""Jobs from a Starlette app, and the page that shows them: `uvicorn starlette_app:app`, then http://127.0.0.1:8000/."""

import contextlib
import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.routing import Mount, Route

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.integrations.monitor import job_monitor
from cjm_worker_ext.integrations.resources import ProcessResourceManager
from cjm_worker_ext.integrations.sse import SSEBroadcaster


def tell(story, ctx):
    "The plugin: it runs in a worker process, not in the web app."
    words = story.split()
    for n, word in enumerate(words, start=1):
        time.sleep(0.1)
        yield word + " "
        ctx.progress(n / len(words))


manager = BaseJobManager(
    "stories",
    "text",
    plugins={"tell": tell},
    resource_manager=ProcessResourceManager(),
    event_broadcaster=SSEBroadcaster(),
)


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        yield


async def home(request: Request):
    return HTMLResponse(
        '<form method=post>Story <input name=story value="Once upon a time"> <button>Tell</button></form>'
    )


async def tell_story(request: Request):
    async with request.form() as form:
        await manager.start_job("tell", story=str(form["story"]))
    return RedirectResponse("/jobs/", 303)


app = Starlette(
    routes=[Route("/", home), Route("/", tell_story, methods=["POST"]), Mount("/jobs", job_monitor(manager))],
    lifespan=life,
)
