"""Every test in a notebook is one that `nbdev_test` runs."""

import json
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted((root / "nbs").rglob("*.ipynb"))


@pytest.mark.parametrize("path", notebooks, ids=lambda path: path.stem)
def test_no_cell_is_passed_over(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    # nbdev_test does not run a cell that exports, nor what else stands in it.
    exporting = [source for source in sources if "nbdev_export(" in source]
    assert [source for source in exporting if source != "#| hide\nimport nbdev\n\nnbdev.nbdev_export()"] == []
    assert not [source for source in sources if "eval: false" in source.replace("eval:false", "eval: false")]
