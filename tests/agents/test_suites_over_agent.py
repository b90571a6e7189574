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
