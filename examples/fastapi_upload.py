"""Upload a file and watch its job: `uvicorn fastapi_upload:app`, then http://127.0.0.1:8000/."""

import asyncio
import contextlib
import os
import shutil
import tempfile

from fastapi import FastAPI, UploadFile
from fastapi.responses import HTMLResponse

from cjm_worker_ext import BaseJobManager
from cjm_worker_ext.integrations.sse import SSEBroadcaster


def count_words(path, ctx):
    "The plugin: it runs in a worker process, not in the web app."
    size, read, words = os.path.getsize(path), 0, 0
    with open(path, "rb") as file:
        for line in file:
            read, words = read + len(line), words + len(line.split())
            ctx.progress(read / size, f"{words:,} words")
    return words


class Uploads(BaseJobManager):
    def on_job_ended(self, job):  # however it ended
        os.unlink(job.params["path"])


events = SSEBroadcaster()
manager = Uploads("uploads", event_broadcaster=events, plugins={"count": count_words})


@contextlib.asynccontextmanager
async def life(app):
    async with manager:
        yield


app = FastAPI(lifespan=life)
app.add_route("/events", events.endpoint)


@app.post("/files")
async def upload(file: UploadFile):
    with contextlib.ExitStack() as undo, tempfile.NamedTemporaryFile(delete=False) as copy:
        undo.callback(os.unlink, copy.name)
        await asyncio.to_thread(shutil.copyfileobj, file.file, copy)
        copy.flush()
        since = events.position  # the page asks for what happens after it: the job may end before the page listens
        job = await manager.submit_job("count", path=copy.name, timeout=600, metadata={"name": file.filename})
        undo.pop_all()  # from here on the copy belongs to the job
    return {"job": job.id, "since": since}


@app.get("/")
async def home():
    return HTMLResponse("""<!doctype html><title>Words</title>
<form><input type=file name=file required> <button>Count words</button></form>
<p><progress value=0></progress> <output></output></p>
<script>
const form = document.querySelector("form"), bar = document.querySelector("progress"), said = document.querySelector("output");
function show(share, text) { bar.value = share; said.textContent = text; }
form.onsubmit = event => {
  event.preventDefault();
  const request = new XMLHttpRequest();  // fetch does not tell how much of an upload is done
  request.upload.onprogress = e => show(e.loaded / e.total, "uploading");
  request.onload = () => request.status == 200 ? watch(JSON.parse(request.response)) : show(0, request.response);
  request.open("POST", "files"); request.send(new FormData(form));
};
function watch({job, since}) {
  const source = new EventSource("events?" + new URLSearchParams({job, last_event_id: since}));
  const on = (type, act) => source.addEventListener(type, event => act(JSON.parse(event.data)));
  on("job:progress", data => show(data.progress, data.message));
  on("job:completed", data => { bar.value = 1; said.textContent += ", done"; source.close(); });
  for (const type of ["job:failed", "job:cancelled"]) on(type, data => { show(0, data.error ?? data.status); source.close(); });
}
</script>""")
