"""One bad day of one peer, in a process of its own: `python -m benchmarks.failure_scene killed ours FOLDER`.

Each observation is written to `FOLDER/observed` when it is made, one line of JSON each: what hangs leaves the rest out.
Imports nothing at its top: pools that use the spawn method import the main module again in each worker.
"""

import sys

SECONDS = 20.0  # For each observation; billiard waits ten for a lost worker


class Day:
    "Two workers; a bad job and an innocent one run, and another innocent one waits."

    def __init__(self, peer, folder):
        self.peer, self.folder = peer, folder

    def note(self, what, found):
        import json

        with open(f"{self.folder}/observed", "a") as file:
            file.write(json.dumps([what, found]) + "\n")

    async def file(self, name):
        import asyncio
        import os

        async with asyncio.timeout(30):
            while not os.path.exists(f"{self.folder}/{name}"):
                await asyncio.sleep(0.01)

    def make(self, name):
        open(f"{self.folder}/{name}", "w").close()

    async def outcome(self, job):
        "How a job ends, in a word."
        import asyncio

        done, _ = await asyncio.wait([asyncio.ensure_future(job)], timeout=SECONDS)
        if not done:
            return "hangs"
        (future,) = done
        if future.cancelled():
            return "cancelled"
        if error := future.exception():
            error = getattr(error, "exc", error)  # billiard wraps it
            return f"fails: {type(error).__name__}"
        return "ok" if future.result() == "ok" else "returns something else"

    async def live(self, task, end):
        "Live through the day; `end` says how the bad job is ended: `go`, `kill`, `cancel`, `timeout` or `app`."
        import asyncio
        import os
        import signal

        peer, folder = self.peer, self.folder
        await peer.open(2)
        assert await self.outcome(peer.submit("quick", folder)) == "ok"
        running = peer.submit("innocent", folder)
        bad, refused = None, None
        if end == "timeout":
            try:
                bad = peer.submit_limited(task, 3, folder)
            except AttributeError:
                refused = "no time limit for a job"
        bad = bad or peer.submit(task, folder)
        await self.file("running")
        await self.file("bad")
        queued = peer.submit("quick", folder)
        self.note("begun", "ok")
        if end == "app":
            await asyncio.sleep(60)  # until this process is killed
        if end == "kill":
            with open(f"{folder}/bad") as file:
                os.kill(int(file.read()), signal.SIGKILL)
        if end == "cancel":
            try:
                await asyncio.wait_for(peer.cancel(bad), SECONDS)
            except TimeoutError:
                refused = "the cancel hangs"
            except NotImplementedError as e:
                refused = f"cannot be cancelled: {e}" if str(e) else "cannot be cancelled: no interface for it"
        self.make("go")
        self.note("bad", await self.outcome(bad) if refused is None else f"runs on: {refused}")
        self.make("end")
        self.note("running", await self.outcome(running))
        self.note("queued", await self.outcome(queued))
        try:
            self.note("new", await self.outcome(peer.submit("quick", folder)))
        except Exception as e:
            self.note("new", f"refused: {type(e).__name__}")
        await peer.close()  # in the main thread, as an app would; what it does not finish is seen from outside
        self.note("close", "ok")


def main():
    import asyncio

    from benchmarks.failing_peers import PEERS
    from benchmarks.failures import SCENES

    scene, peer, folder = sys.argv[1:4]
    day = Day(PEERS[peer](), folder)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(day.live(SCENES[scene].task, SCENES[scene].end))
    except BaseException as e:
        day.note("error", f"{type(e).__name__}: {e}")
        raise


if __name__ == "__main__":
    main()
