"""The tests of interrupts, ends of workers, silence, output and retries, with workers behind an agent."""

import pytest
import test_retries
import test_stalled
from test_healthy_workers import *  # noqa: F403
from test_interrupts import *  # noqa: F403
from test_output import *  # noqa: F403
from test_retries import *  # noqa: F403
from test_stalled import *  # noqa: F403
from test_worker_ends import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("over_agent")


def test_a_silent_job_is_told_once_for_each_silence_and_goes_on(tmp_path):
    test_stalled.test_a_silent_job_is_told_once_for_each_silence_and_goes_on("default", tmp_path)


@pytest.mark.parametrize("how", ["value", "crash"])
def test_positions_of_chunks_go_on_and_the_result_holds_those_of_the_last_attempt(how, tmp_path):
    test_retries.test_positions_of_chunks_go_on_and_the_result_holds_those_of_the_last_attempt(None, how, tmp_path)


# Its plugin is on the path of the app, and an agent has a path of its own.
del test_a_cancelled_import_does_not_spoil_the_worker  # noqa: F821
# Their apps are programs of their own, with the flags and signals of the app that starts the worker: there is no such app.
del test_an_exit_code_that_nobody_knows_is_said_to_be_unknown  # noqa: F821
del test_workers_run_with_the_flags_of_the_app  # noqa: F821
# It looks at one process, without a manager.
del test_a_kill_on_purpose_is_no_want_of_memory  # noqa: F821
