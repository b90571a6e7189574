"""Lets the tests of local workers run with workers on a Ray cluster of three nodes, all on this machine.

A cluster is heavy, so these tests run only when they are asked for: `bash .ci/ray`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

collect_ignore_glob = [] if os.environ.get("CJM_WORKER_TEST_RAY") else ["test_*.py"]

TESTS = Path(__file__).parents[1]
SMALL = {"num_cpus": 4, "object_store_memory": 80 << 20}


@pytest.fixture(scope="session")
def cluster():
    "Three nodes; what they start finds the modules of the tests."
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH", "")
    folders = [TESTS, TESTS / "agents", TESTS / "on_ray", TESTS.parent, before]
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, folders)).rstrip(os.pathsep)
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(**SMALL)
        yield cluster
    finally:
        os.environ["PYTHONPATH"] = before
        cluster.shutdown()


@pytest.fixture
def on_ray(cluster, monkeypatch):
    "Every manager has its workers on Ray; their process ids are the real ones, so that a test can signal them."
    from remote_scenes import show_real_pids

    from cjm_worker_ext.backends.ray import RayBackend
    from cjm_worker_ext.manager import override_backend

    show_real_pids(monkeypatch)
    with override_backend(RayBackend(cluster.address, num_cpus=0.1)):
        yield
