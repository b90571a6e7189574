"""The reference of the manager has an entry for every method that an app may call or override, and each once."""

import json
import re
from collections import Counter
from pathlib import Path

from cjm_worker_ext import BaseJobManager

NOTEBOOK = Path(__file__).resolve().parent.parent / "nbs" / "08_manager.ipynb"


def test_every_public_method_has_one_entry():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    entries = Counter(match[1] for s in sources if (match := re.match(r"show_doc\(BaseJobManager\.(\w+)\)", s)))
    assert entries == Counter(name for name in vars(BaseJobManager) if not name.startswith("_"))


def test_it_is_one_class():
    assert BaseJobManager.__bases__ == (object,)
