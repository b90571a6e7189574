"""Lets the tests of local workers run with workers behind an agent."""

import pytest
from agent_process import TOKEN, AgentProcess
from remote_scenes import show_real_pids

from cjm_worker_ext.backends.hosts import HostsBackend
from cjm_worker_ext.manager import override_backend


@pytest.fixture(scope="session")
def shared_agent():
    with AgentProcess("--workers", "16") as agent:
        yield agent


@pytest.fixture
def over_agent(shared_agent, monkeypatch):
    "Every manager has its workers behind an agent; their process ids are the real ones, so that a test can signal them."
    show_real_pids(monkeypatch)
    patient = {"lease_seconds": 20.0, "lost_seconds": 30.0}  # on a busy machine
    with override_backend(HostsBackend([shared_agent.host], token=TOKEN, **patient)):
        yield
