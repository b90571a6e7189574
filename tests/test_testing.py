"""The in-process backend shows an app what the local one shows it: the same scenes on both."""

from __future__ import annotations

import pytest
from backend_scenes import SCENES, maker
from harness import run

from cjm_worker_ext.backends.local import LocalBackend
from cjm_worker_ext.testing import InProcessBackend

BACKENDS = {"local": LocalBackend, "in process": InProcessBackend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scene", SCENES)
def test_scene(scene, backend, tmp_path):
    run(SCENES[scene](maker(BACKENDS[backend]), tmp_path, simulated=backend == "in process"))
