"""Integrations that record what they are told, and have bad moods: they raise, sleep or hang for a while."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any

from harness import until
from test_sse_hub import Page, frames

from cjm_worker_ext.integrations.sse import SSEBroadcaster

STATE_KEYWORDS = {"job_id", "plugin_id", "plugin_name", "loaded_plugin_resource", "config", "status"}
ENDS = ("job:completed", "job:failed", "job:cancelled")


class Harm(Exception):
    "What is raised on purpose; any other exception in the log is a fault of the library."


class Moods:
    "Which integration is in which mood, and until when; used from several threads."

    def __init__(self):
        self._moods: dict[str, tuple[str, float]] = {}
        self._lifted = threading.Event()
        self.bad_times: dict[str, int] = {}  # How often each one got into a mood

    def begin(self, who: str, mood: str, seconds: float) -> None:
        self._moods[who] = (mood, time.monotonic() + seconds)
        self.bad_times[who] = self.bad_times.get(who, 0) + 1

    def lift(self) -> None:
        "Everybody is well from now on; what sleeps or hangs goes on."
        self._moods.clear()
        self._lifted.set()

    def is_bad(self, who: str) -> bool:
        return self._rest(who)[0] is not None

    def _rest(self, who: str) -> tuple[str | None, float]:
        mood, until = self._moods.get(who, (None, 0.0))
        rest = until - time.monotonic()
        return (mood, rest) if rest > 0 else (None, 0.0)

    def suffer(self, who: str) -> None:
        "Called where an integration does its work in a thread."
        mood, rest = self._rest(who)
        if mood == "raises":
            raise Harm(f"{who} {mood}")
        if mood:
            self._lifted.wait(0.005 if mood == "sleeps" else rest)

    async def suffer_on_loop(self, who: str) -> None:
        mood, rest = self._rest(who)
        if mood == "raises":
            raise Harm(f"{who} {mood}")
        if mood:
            with contextlib.suppress(AssertionError):  # its time is over
                await until(self._lifted.is_set, 0.005 if mood == "sleeps" else rest)


class Broadcaster:
    "Records events, and passes them on to a real `SSEBroadcaster` with pages that read."

    def __init__(self, moods: Moods, problems: list[str]):
        self.moods, self.problems = moods, problems
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.sse = SSEBroadcaster()
        self.pages: list[tuple[int, Page]] = []  # Those that read to the end, with the number of ends before them
        self.ends: list[str] = []  # Ids of jobs, in the order of their ends

    async def broadcast(self, event_type: str, data: dict[str, Any]) -> None:
        self.events.append((event_type, data))
        try:
            json.dumps(data, allow_nan=False)
            await self.sse.broadcast(event_type, data)
        except Exception as e:  # noqa: BLE001  - whatever it is, the manager would only log it
            self.problems.append(f"event {event_type} was refused by the broadcaster: {e!r}")
        if event_type in ENDS:
            self.ends.append(data["job_id"])
        await self.moods.suffer_on_loop("broadcaster")

    def open_page(self) -> Page:
        query = "&".join(f"event={kind}" for kind in ENDS)
        return Page(self.sse.endpoint, query=query.encode())

    async def open_pages(self, count: int = 2) -> None:
        "Pages that read all ends of jobs."
        for _ in range(count):
            page = self.open_page()
            await page.until(b"\n\n")
            self.pages.append((len(self.ends), page))

    async def close_pages(self) -> None:
        "End all streams, and compare what each page has seen with what was told."
        expected_ends, pages = list(self.ends), self.pages
        self.pages = []
        for start, page in pages:
            if start < len(expected_ends):
                await page.until(expected_ends[-1].encode())
            await page.leave()
            seen = [json.loads(f["data"]) for f in frames(page.body.decode()) if f.get("event") in (*ENDS, "gap")]
            ids = [data.get("job_id") for data in seen]
            if None not in ids and ids != expected_ends[start:]:
                self.problems.append(f"a page saw {len(ids)} ends of jobs, and there were {len(expected_ends) - start}")
        self.sse.close()


class Resources:
    "Records calls; a look-alike with exactly the six keywords."

    def __init__(self, moods: Moods):
        self.moods = moods
        self.calls: list[tuple[str, int, dict[str, Any]]] = []

    def register_worker(self, pid: int, worker_type: str) -> None:
        self._note("register", pid)

    def unregister_worker(self, pid: int) -> None:
        self._note("unregister", pid)

    def update_worker_state(self, pid: int, **state: Any) -> None:
        self._note("update", pid, state)

    def _note(self, call: str, pid: int, state: dict[str, Any] | None = None) -> None:
        self.calls.append((call, pid, state or {}))
        self.moods.suffer("resource manager")


class Registry:
    "Knows one plugin's configuration, which changes; the targets come from the manager's `plugins`."

    def __init__(self, moods: Moods):
        self.moods, self.generation = moods, 1

    def get_plugins_by_category(self, category: object) -> list[Any]:
        return []

    def get_plugin(self, plugin_id: str) -> dict[str, str]:
        self.moods.suffer("registry")
        return {"name": plugin_id}

    def load_plugin_config(self, plugin_id: str) -> dict[str, Any]:
        return {"generation": self.generation} if plugin_id == "Configured" else {}
