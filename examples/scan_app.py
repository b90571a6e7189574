"""Read scans with a real model, for several users at once: `uvicorn scan_app:app`, then http://127.0.0.1:8000/."""

import contextlib
import secrets

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from cjm_worker_ext import BaseJobManager, WorkerConfig
from cjm_worker_ext.integrations.resources import ProcessResourceManager
from cjm_worker_ext.integrations.sse import SSEBroadcaster


def user_of(request):  # an app with a login asks its session here
    return request.cookies.get("user")


def is_own(event, user):
    return event.data.get("metadata", {}).get("user") == user


resources = ProcessResourceManager()
cards = len(resources.snapshot().gpus or ())
config = WorkerConfig(max_workers=cards or 2, gpus="all" if cards else None, cancel_grace_seconds=20)
plugins = {"read-text": "scan_plugin:ReadText"}
events = SSEBroadcaster(authorize=user_of, visible=is_own)
manager = BaseJobManager(
    "ocr", plugins=plugins, worker_config=config, resource_manager=resources, event_broadcaster=events
)


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        yield


async def upload(request):
    if not (user := user_of(request)) or int(request.headers.get("content-length", 0)) > 20 << 20:
        return JSONResponse({"error": "open the page first, and send at most 20 MiB"}, 400)
    png, since = await request.body(), events.position
    job = await manager.submit_job("read-text", png=png, timeout=300, metadata={"user": user})
    return JSONResponse({"job": job.id, "since": since})


async def home(request):
    page = HTMLResponse("""<!doctype html><title>Read a scan</title><style>body { font: 1.1rem sans-serif; margin: 2rem }</style>
<h1>Read a scan</h1><input type=file accept="image/*">
<p><progress value=0></progress> <output></output></p><pre></pre>
<script>
const file = document.querySelector("input"), bar = document.querySelector("progress");
const said = document.querySelector("output"), text = document.querySelector("pre");
file.onchange = async () => {
  text.textContent = ""; bar.value = 0; said.textContent = "waiting";
  const answer = await fetch("scans", {method: "POST", body: file.files[0]});
  const {job, since} = await answer.json();
  const source = new EventSource("events?" + new URLSearchParams({job, last_event_id: since}));
  const on = (type, act) => source.addEventListener(type, event => act(JSON.parse(event.data)));
  on("job:progress", data => { bar.value = data.progress; said.textContent = data.message; });
  on("job:chunk", data => { for (const [line] of data.chunks) text.textContent += line + "\\n"; });
  on("job:completed", data => { said.textContent += ", done"; source.close(); });
  for (const type of ["job:failed", "job:cancelled"]) on(type, data => { said.textContent = data.error ?? data.status; source.close(); });
};
</script>""")
    if not user_of(request):
        page.set_cookie("user", secrets.token_urlsafe(), httponly=True, samesite="strict")
    return page


routes = [Route("/", home), Route("/scans", upload, methods=["POST"]), Route("/events", events.endpoint)]
app = Starlette(routes=routes, lifespan=life)
