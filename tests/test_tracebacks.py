"A traceback from a worker names the script that the plugin stands in, and shows its lines."

import subprocess
import sys

SCRIPT = """
from cjm_worker_ext import BaseJobManager


def inverse(n):
    return 1 / n  # the line


class Inverse:
    def execute(self, n):
        return inverse(n)


if __name__ == "__main__":
    with BaseJobManager("numbers", plugins={"inverse": Inverse}).blocking() as manager:
        manager.run("inverse", n=0)
"""


def ended(*command, text=None):
    done = subprocess.run([sys.executable, *command], input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    return done.stderr


def test_of_a_script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    remote = ended(str(path)).partition("In the worker:")[2]
    assert f'File "{path}", line 6, in inverse\n    return 1 / n  # the line\n' in remote
    assert f'File "{path}", line 11, in execute\n    return inverse(n)\n' in remote


def test_of_code_that_stands_in_no_file(tmp_path):
    typed = f"import linecache\nsource = {SCRIPT!r}\n"
    typed += "linecache.cache['<input 7>'] = len(source), None, source.splitlines(True), '<input 7>'\n"
    remote = ended("-", text=typed + "exec(compile(source, '<input 7>', 'exec'))").partition("In the worker:")[2]
    assert 'File "<input 7>", line 6, in inverse\n    return 1 / n  # the line\n' in remote
