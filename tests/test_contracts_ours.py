"""The ready-made integrations keep the contracts of their protocols, and so do look-alikes of earlier ones."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from cjm_worker_ext.errors import ProtocolError
from cjm_worker_ext.extensions.conformance import check_protocol, require_protocols
from cjm_worker_ext.extensions.contract_tests import BroadcasterTests, RegistryTests, ResourceManagerTests
from cjm_worker_ext.extensions.contracts import run_contracts
from cjm_worker_ext.extensions.protocols import (
    EventBroadcasterProtocol,
    PluginRegistryProtocol,
    ResourceManagerProtocol,
)
from cjm_worker_ext.integrations.broadcasters import Broadcasters
from cjm_worker_ext.integrations.metrics import MetricsBroadcaster, OpenTelemetryMetrics
from cjm_worker_ext.integrations.registry import EntryPointPluginRegistry
from cjm_worker_ext.integrations.resources import ProcessResourceManager
from cjm_worker_ext.integrations.sse import SSEBroadcaster
from cjm_worker_ext.manager import BaseJobManager


class TestEntryPointPluginRegistry(RegistryTests):
    category = "contract"

    def make(self):
        registry = EntryPointPluginRegistry(path=[])
        registry.register("words", str.split, category="contract")
        registry.register("lines", str.splitlines, category="contract")
        return registry

    def add(self, registry, plugin_id):
        return registry.register(plugin_id, str.split, category="contract").get_unique_id()


class TestProcessResourceManager(ResourceManagerTests):
    def make(self):
        return ProcessResourceManager()

    def state(self, manager, pid):
        names = ("job_id", "plugin_id", "plugin_name", "loaded_plugin_resource", "status")
        return next(({name: getattr(row, name) for name in names} for row in manager.find(pid=pid)), None)

    def close(self, manager):
        manager.close()


class Page:
    "A client of an event stream that runs inside the test: an ASGI request, and the events of its answer."

    def __init__(self, endpoint):
        self.events = asyncio.Queue()
        self.started = asyncio.Event()
        self.rest = b""
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        self.task = asyncio.create_task(endpoint(scope, self.receive, self.send))

    async def receive(self):
        await asyncio.Event().wait()  # it never disconnects

    async def send(self, message):
        self.started.set()
        *frames, self.rest = (self.rest + message.get("body", b"")).replace(b"\r\n", b"\n").split(b"\n\n")
        for frame in frames:
            fields = [line.partition(": ")[::2] for line in frame.decode().split("\n")]
            event_type = "".join(value for name, value in fields if name == "event")
            if event_type.startswith("job:"):
                data = "\n".join(value for name, value in fields if name == "data")
                self.events.put_nowait((event_type, json.loads(data)))


class TestSSEBroadcaster(BroadcasterTests):
    closes = True

    def make(self):
        self.pages = []
        return SSEBroadcaster()

    async def subscribe(self, broadcaster):
        page = Page(broadcaster.endpoint)
        self.pages.append(page)
        await page.started.wait()
        return page.events.get

    async def close(self, broadcaster):
        broadcaster.close()
        for page in self.pages:
            page.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await page.task


class Refuses:
    async def broadcast(self, event_type, data):
        data.clear()
        raise OSError("away")


class Hangs:
    async def broadcast(self, event_type, data):
        await asyncio.Event().wait()


class TestBroadcasters(TestSSEBroadcaster):
    "The listeners are those of one of four broadcasters, of which one raises and one hangs."

    def make(self):
        self.inner = super().make()
        return Broadcasters([Refuses(), Hangs(), self.inner, MetricsBroadcaster()], patience_seconds=0.01)

    async def subscribe(self, broadcaster):
        return await super().subscribe(self.inner)

    async def close(self, broadcaster):
        await super().close(self.inner)


class TestMetricsBroadcaster(BroadcasterTests):
    def make(self):
        return MetricsBroadcaster()


class TestOpenTelemetryMetrics(BroadcasterTests):
    def make(self):
        return OpenTelemetryMetrics()


class EarlierRegistry:
    "Its parameter has another name."

    def __init__(self):
        self.plugins = {"words": {"name": "words", "is_configured": True, "unique_id": "words"}}

    def get_plugins_by_category(self, category) -> list:
        return list(self.plugins.values()) if category == "text" else []

    def get_plugin(self, unique_id: str):
        return self.plugins.get(unique_id)

    def load_plugin_config(self, unique_id: str) -> dict:
        return {"sep": None}


class EarlierResources:
    "It knows exactly six keywords."

    def __init__(self):
        self.calls = []

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.calls.append(("register", pid))

    def unregister_worker(self, pid: int) -> None:
        self.calls.append(("unregister", pid))

    def update_worker_state(
        self,
        pid: int,
        job_id: str | None = None,
        plugin_id: str | None = None,
        plugin_name: str | None = None,
        loaded_plugin_resource: str | None = None,
        config: dict | None = None,
        status: str | None = None,
    ) -> None:
        self.calls.append(("update", pid))


class EarlierBroadcaster:
    "It takes one more parameter and gives an int."

    def __init__(self):
        self.events = []

    async def broadcast(self, event_type: str, data: dict, room: str = "all") -> int:
        if len(event_type.splitlines()) != 1 or event_type[-1] in "\r\n":
            raise ValueError(f"event_type must be one line, got {event_type!r}")
        self.events.append((event_type, data))
        return 1


EARLIER = {
    "plugin_registry": (EarlierRegistry(), PluginRegistryProtocol),
    "resource_manager": (EarlierResources(), ResourceManagerProtocol),
    "event_broadcaster": (EarlierBroadcaster(), EventBroadcasterProtocol),
}


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_implementations_have_the_right_shape(name):
    implementation, protocol = EARLIER[name]
    assert check_protocol(implementation, protocol) == []
    assert check_protocol(type(implementation), protocol) == []


def test_earlier_implementations_are_accepted_together():
    require_protocols(EARLIER)


class TestEarlierRegistry(RegistryTests):
    category = "text"

    def make(self):
        return EarlierRegistry()


class TestEarlierResources(ResourceManagerTests):
    def make(self):
        return EarlierResources()


class TestEarlierBroadcaster(BroadcasterTests):
    def make(self):
        return EarlierBroadcaster()


def word_count(text: str) -> int:
    return len(text.split())


async def run_one_job():
    registry, resources, broadcaster = EarlierRegistry(), EarlierResources(), EarlierBroadcaster()
    manager = BaseJobManager(
        "text",
        "text",
        plugins={"words": word_count},
        plugin_registry=registry,
        resource_manager=resources,
        event_broadcaster=broadcaster,
    )
    async with manager:
        job = await manager.start_job("words", text="one two three")
        job = await manager.wait(job.id, timeout=120)
        assert (job.status, job.result) == ("completed", 3), job.error
    return resources, broadcaster


def test_earlier_implementations_run_under_the_manager_unchanged():
    resources, broadcaster = asyncio.run(run_one_job())
    kinds = [kind for kind, _ in resources.calls]
    pids = {pid for _, pid in resources.calls}
    assert kinds[0] == "register" and "update" in kinds
    assert sorted(pid for kind, pid in resources.calls if kind == "unregister") == sorted(pids)
    seen = [event_type for event_type, _ in broadcaster.events]
    assert [name for name in seen if name.startswith("job:")] == ["job:queued", "job:started", "job:completed"]


@pytest.mark.parametrize(
    "tests", [TestEntryPointPluginRegistry, TestProcessResourceManager, TestSSEBroadcaster, TestBroadcasters]
)
def test_every_contract_of_ours_is_kept_and_none_is_left_out(tests):
    report = asyncio.run(run_contracts(tests()))
    assert report.kept == list(tests.contracts), str(report)


class SyncBus:
    def broadcast(self, event_type, data): ...


def test_a_manager_refuses_what_is_wrong_and_names_all_of_it():
    with pytest.raises(ProtocolError) as caught:
        BaseJobManager("text", "text", plugin_registry=object(), event_broadcaster=SyncBus())
    lines = [line for line in str(caught.value).splitlines() if not line.startswith(" ")]
    methods = ("get_plugins_by_category", "get_plugin", "load_plugin_config")
    missing = "; ".join(f"{method} is missing" for method in methods)
    assert lines == [
        f"plugin_registry=object() does not keep PluginRegistryProtocol: {missing}",
        "event_broadcaster=SyncBus() does not keep EventBroadcasterProtocol: broadcast must be async",
    ]
    assert f"{__file__}:{SyncBus.broadcast.__code__.co_firstlineno}; write async def broadcast" in str(caught.value)


def test_a_manager_refuses_a_class_where_an_instance_belongs():
    with pytest.raises(ProtocolError, match=r"EarlierBroadcaster must be an instance\n.*write EarlierBroadcaster\("):
        BaseJobManager("text", "text", event_broadcaster=EarlierBroadcaster)
