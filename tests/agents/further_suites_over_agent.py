"""More tests of workers on this machine, with workers behind an agent: `bash .ci/agents` runs them, they take minutes."""

import pytest
from test_between_jobs import *  # noqa: F403
from test_calls import *  # noqa: F403
from test_leftovers import *  # noqa: F403
from test_one_plugin_per_worker import *  # noqa: F403
from test_plugin_logging import *  # noqa: F403
from test_recycling import *  # noqa: F403
from test_restart_policies import *  # noqa: F403
from test_stream_start import *  # noqa: F403
from test_tracebacks import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("over_agent")


# Its plugin is on the path of the app, and an agent has a path of its own.
del test_logging_is_loaded_by_the_plugin_and_by_nobody_else_and_is_heard_from_the_first_record_on  # noqa: F821
# While the app reads nothing the agent does, and words that came between two records stay there.
del test_records_that_are_read_after_the_end_stand_before_the_reason  # noqa: F821
# The agent looks for the interpreter on its machine, and its words name it.
del test_an_interpreter_that_does_not_exist_fails_at_once  # noqa: F821
del test_the_log_names_an_interpreter_that_is_not_there  # noqa: F821
