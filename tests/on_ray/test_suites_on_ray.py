"""The tests of bad days, ends, streams, results, async plugins and batches, with workers on Ray: the same assertions."""

import pytest
from test_async_plugins import *  # noqa: F403
from test_bad_days import *  # noqa: F403
from test_batches import *  # noqa: F403
from test_job_ends import *  # noqa: F403
from test_results import *  # noqa: F403
from test_streams import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("on_ray")


# These are about workers without a way between: tests/agents/test_suites_over_agent.py says why.
del test_only_the_answers_of_batches_may_take_a_longer_turn_of_the_loop  # noqa: F821
del test_shared_memory_is_used_again_and_given_back  # noqa: F821
del test_a_worker_killed_from_outside  # noqa: F821
