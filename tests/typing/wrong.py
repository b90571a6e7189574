"""Implementations that a strict type checker must reject: on the lines marked with `# wrong`, and on no others."""

from __future__ import annotations

from typing import Any

from cjm_worker_ext.extensions.protocols import (
    EventBroadcasterProtocol,
    PluginRegistryProtocol,
    ResourceManagerProtocol,
)


class SyncBus:
    def broadcast(self, event_type: str, data: dict[str, Any]) -> None: ...


class ShortBus:
    async def broadcast(self, data: dict[str, Any]) -> None: ...


class LongBus:
    async def broadcast(self, event_type: str, data: dict[str, Any], room: str) -> None: ...


class KeywordBus:
    async def broadcast(self, *, event_type: str, data: dict[str, Any]) -> None: ...


class IntBus:
    async def broadcast(self, event_type: int, data: dict[str, Any]) -> None: ...


class NumberBus:
    broadcast = 3


class NoBus: ...


class Registry:
    def get_plugins_by_category(self, category: Any) -> list[Any]:
        return []

    def get_plugin(self, plugin_id: str) -> Any:
        return None

    def load_plugin_config(self, plugin_id: str) -> dict[str, Any]:
        return {}


class WrongReturn(Registry):
    def load_plugin_config(self, plugin_id: str) -> list[str]:  # wrong
        return []


class Tuples:
    get_plugin = Registry.get_plugin
    load_plugin_config = Registry.load_plugin_config

    def get_plugins_by_category(self, category: Any) -> tuple[Any, ...]:
        return ()


class AsyncRegistry:
    get_plugins_by_category = Registry.get_plugins_by_category
    get_plugin = Registry.get_plugin

    async def load_plugin_config(self, plugin_id: str) -> dict[str, Any]:
        return {}


class NoConfig:
    get_plugins_by_category = Registry.get_plugins_by_category
    get_plugin = Registry.get_plugin


class IntIds:
    get_plugins_by_category = Registry.get_plugins_by_category
    load_plugin_config = Registry.load_plugin_config

    def get_plugin(self, plugin_id: int) -> Any:
        return None


class Resources:
    def register_worker(self, pid: int, worker_type: str) -> None: ...

    def unregister_worker(self, pid: int) -> None: ...


class NoKeywords(Resources):
    def update_worker_state(self, pid: int) -> None: ...


class NoType:
    unregister_worker = Resources.unregister_worker

    def register_worker(self, pid: int) -> None: ...

    def update_worker_state(self, pid: int, **kwargs: Any) -> None: ...


sync_bus: EventBroadcasterProtocol = SyncBus()  # wrong
short_bus: EventBroadcasterProtocol = ShortBus()  # wrong
long_bus: EventBroadcasterProtocol = LongBus()  # wrong
keyword_bus: EventBroadcasterProtocol = KeywordBus()  # wrong
int_bus: EventBroadcasterProtocol = IntBus()  # wrong
number_bus: EventBroadcasterProtocol = NumberBus()  # wrong
no_bus: EventBroadcasterProtocol = NoBus()  # wrong
right_registry: PluginRegistryProtocol = Registry()
wrong_return: PluginRegistryProtocol = WrongReturn()  # wrong
tuples: PluginRegistryProtocol = Tuples()  # wrong
async_registry: PluginRegistryProtocol = AsyncRegistry()  # wrong
no_config: PluginRegistryProtocol = NoConfig()  # wrong
int_ids: PluginRegistryProtocol = IntIds()  # wrong
no_update: ResourceManagerProtocol = Resources()  # wrong
no_keywords: ResourceManagerProtocol = NoKeywords()  # wrong
no_type: ResourceManagerProtocol = NoType()  # wrong
swapped: ResourceManagerProtocol = Registry()  # wrong
