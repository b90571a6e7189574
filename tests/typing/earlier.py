"""Implementations for an earlier job manager: they run as they are, and a type checker has an opinion on some of them.

A call by name would miss a renamed parameter, six keywords are fewer than any, and an int is not None. A manager calls
by position, sends no other keyword and ignores what is returned; types cannot say so without changing the protocols.
"""

from __future__ import annotations

from typing import Any

from cjm_worker_ext.extensions.protocols import (
    EventBroadcasterProtocol,
    PluginRegistryProtocol,
    ResourceManagerProtocol,
)


class RenamedRegistry:
    def get_plugins_by_category(self, category: Any) -> list[Any]:
        return []

    def get_plugin(self, unique_id: str) -> Any:
        return None

    def load_plugin_config(self, unique_id: str) -> dict[str, Any]:
        return {}


class SixKeywords:
    def register_worker(self, pid: int, worker_type: str) -> None: ...

    def unregister_worker(self, pid: int) -> None: ...

    def update_worker_state(
        self,
        pid: int,
        job_id: str | None = None,
        plugin_id: str | None = None,
        plugin_name: str | None = None,
        loaded_plugin_resource: str | None = None,
        config: dict[str, Any] | None = None,
        status: str | None = None,
    ) -> None: ...


class CountingBus:
    async def broadcast(self, event_type: str, data: dict[str, Any], room: str = "all") -> int:
        return 0


registry: PluginRegistryProtocol = RenamedRegistry()  # wrong: pyright
resources: ResourceManagerProtocol = SixKeywords()  # wrong
broadcaster: EventBroadcasterProtocol = CountingBus()  # wrong
