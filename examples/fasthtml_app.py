"""Jobs from a FastHTML app, and the page that shows them: `python fasthtml_app.py`, then http://127.0.0.1:5001/."""

import contextlib
import time

from fasthtml.common import A, Button, Form, Input, P, Redirect, Titled, fast_app, serve

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


app, rt = fast_app(lifespan=life)
app.mount("/jobs", job_monitor(manager))


@rt("/")
def get():
    form = Form(Input(name="story", value="Once upon a time"), Button("Tell"), method="post", action="/")
    return Titled("Stories", form, P(A("All jobs", href="/jobs/")))


@rt("/")
async def post(story: str):
    await manager.start_job("tell", story=story)
    return Redirect("/jobs/")


serve()
