"""What an app may expect of every backend, with the workers on Ray: the same scenes, the same assertions."""

import pytest
from backend_scenes import SCENES, maker
from harness import run

from cjm_worker_ext.backends.ray import RayBackend


@pytest.mark.parametrize("scene", SCENES)
def test_scene(scene, cluster, tmp_path):
    run(SCENES[scene](maker(RayBackend(cluster.address, num_cpus=0.1)), tmp_path, simulated=False), 120)
