"""Implementations that a strict type checker must accept: no line of this file is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cjm_worker_ext.extensions.conformance import Problem, check_protocol, conforms, require_protocol, require_protocols
from cjm_worker_ext.extensions.contract_tests import BroadcasterTests
from cjm_worker_ext.extensions.contracts import RegistrySuite, ResourceManagerSuite, check_contracts
from cjm_worker_ext.extensions.protocols import (
    EventBroadcasterProtocol,
    PluginRegistryProtocol,
    ResourceManagerProtocol,
)


class Plugin:
    name = "whisper"


class Registry:
    def get_plugins_by_category(self, category: str) -> list[Plugin]:
        return []

    def get_plugin(self, plugin_id: str) -> Plugin | None:
        return None

    def load_plugin_config(self, plugin_id: str) -> dict[str, Any]:
        return {}


class AnyCategory:
    def get_plugins_by_category(self, category: object, limit: int = 10) -> list[Any]:
        return []

    def get_plugin(self, plugin_id: str | int) -> Plugin:
        return Plugin()

    def load_plugin_config(self, plugin_id: str) -> dict[str, Any]:
        return {}


class Resources:
    def register_worker(self, pid: int, worker_type: str) -> None: ...

    def unregister_worker(self, pid: int) -> None: ...

    def update_worker_state(self, pid: int, **kwargs: Any) -> None: ...


class Bus:
    async def broadcast(self, event_type: str, data: dict[str, Any]) -> None: ...


class WiderBus:
    async def broadcast(self, event_type: str, data: Mapping[str, Any], room: str = "all") -> None: ...


registries: list[PluginRegistryProtocol] = [Registry(), AnyCategory()]
resources: ResourceManagerProtocol = Resources()
broadcasters: list[EventBroadcasterProtocol] = [Bus(), WiderBus()]

problems: list[Problem] = check_protocol(Bus, EventBroadcasterProtocol)
fine: bool = conforms(Bus(), EventBroadcasterProtocol)
require_protocol("event_broadcaster", Bus(), EventBroadcasterProtocol)
require_protocols({"resource_manager": (Resources(), ResourceManagerProtocol)})


class MySuite(RegistrySuite):
    category = "speech"

    def make(self) -> Registry:
        return Registry()


class MyResources(ResourceManagerSuite):
    def make(self) -> Resources:
        return Resources()

    def state(self, manager: Resources, pid: int) -> Mapping[str, Any] | None:
        return None


class TestBus(BroadcasterTests):
    async def make(self) -> Bus:
        return Bus()


broken: list[str] = check_contracts(MySuite()).broken
