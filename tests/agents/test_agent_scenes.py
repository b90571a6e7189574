"""What an app may expect of every backend, with the workers behind an agent: the same scenes, the same assertions."""

import pytest
from agent_process import TOKEN, AgentProcess
from backend_scenes import SCENES, maker
from harness import run

from cjm_worker_ext.backends.hosts import HostsBackend


@pytest.fixture(scope="module")
def agent():
    with AgentProcess("--workers", "4") as agent:
        yield agent


@pytest.mark.parametrize("scene", SCENES)
def test_scene(scene, agent, tmp_path):
    run(SCENES[scene](maker(HostsBackend([agent.host], token=TOKEN)), tmp_path, simulated=False))
