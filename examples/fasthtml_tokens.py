"""Tokens of a language model as they come: `python fasthtml_tokens.py`, then http://127.0.0.1:5001/."""

import json
import time

from fasthtml.common import Button, EventStream, Form, Input, Pre, Script, Titled, fast_app, serve

from cjm_worker_ext import BaseJobManager, WorkerConfig


class Parrot:
    "The plugin: it runs in a worker process, not in the web app."

    def load(self, config):  # once in each worker
        self.words = "As you said: "  # stands for the weights of a model

    def execute(self, prompt):  # a generator: each token goes to the page at once
        for word in (self.words + prompt).split():
            time.sleep(0.05)  # stands for the work
            yield word + " "


manager = BaseJobManager("language", plugins={"parrot": Parrot}, worker_config=WorkerConfig(max_pending_jobs=100))


async def life(app):
    async with manager:
        await manager.load_plugin("parrot")  # the first user does not wait for it
        yield


app, rt = fast_app(lifespan=life)


@rt("/")
def index():
    form = Form(Input(name="prompt", value="Tell me a story", required=True), Button("Ask"), id="ask")
    return Titled("Parrot", form, Button("Stop", id="stop"), Pre(id="answer"), Script(PAGE))


@rt("/ask", methods=["post"])
async def ask(prompt: str):
    job = await manager.start_job("parrot", prompt=prompt)
    return {"job": job.id}


@rt("/tokens/{job}")
async def tokens(job: str):
    async def follow():
        async for token in manager.stream(job):
            yield f"data: {json.dumps(token)}\n\n"  # a token may have line breaks, which end a message
        ended = await manager.wait(job)
        yield f"event: end\ndata: {json.dumps(ended.error or ended.status)}\n\n"

    return EventStream(follow())


@rt("/stop/{job}", methods=["post"])
async def stop(job: str):
    return {"stopped": await manager.cancel_job(job)}


PAGE = """
const answer = document.getElementById("answer");
let job;
document.getElementById("ask").onsubmit = async event => {
  event.preventDefault();
  answer.textContent = "";
  ({job} = await (await fetch("/ask", {method: "POST", body: new FormData(event.target)})).json());
  const source = new EventSource("/tokens/" + job);
  source.onmessage = event => answer.append(JSON.parse(event.data));
  source.addEventListener("end", event => { answer.append("(" + JSON.parse(event.data) + ")"); source.close(); });
};
document.getElementById("stop").onclick = () => job && fetch("/stop/" + job, {method: "POST"});
"""

serve()
