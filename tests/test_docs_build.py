"docs/build.py builds nothing for a word that it does not know."

import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).resolve().parent.parent / "docs" / "build.py"


@pytest.mark.parametrize("words", [["construct"], ["check", "now"], ["execute"], [""]])
def test_an_unknown_word(words):
    done = subprocess.run([sys.executable, BUILD, *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("not known; write one of build, serve, preview, process, check\n")
