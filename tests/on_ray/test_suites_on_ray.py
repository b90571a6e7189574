"""The tests of bad days, ends, streams, results, async plugins and batches, with workers on Ray: the same assertions."""

import pytest
from test_suites_over_agent import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("on_ray")
