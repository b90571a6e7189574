"""The tests of bad days, ends, streams, results, async plugins and batches, with workers behind an agent."""

import pytest
from test_async_plugins import *  # noqa: F403
from test_bad_days import *  # noqa: F403
from test_batches import *  # noqa: F403
from test_job_ends import *  # noqa: F403
from test_results import *  # noqa: F403
from test_streams import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("over_agent")


del test_shared_memory_is_used_again_and_given_back  # noqa: F821  - nothing is shared with another machine
del test_only_the_answers_of_batches_may_take_a_longer_turn_of_the_loop  # noqa: F821  - looks at a worker of this process
# It kills a worker when its order is sent; over an agent that is often before the worker has read it, and then the job
# goes to another worker. `test_a_killed_worker_costs_its_own_job` waits until the job runs.
del test_a_worker_killed_from_outside  # noqa: F821
