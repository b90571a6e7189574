"""What the site's scripts know of the package, for tests: `docs/layers.py`, which no package holds."""

import importlib.util
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("layers", root / "docs" / "layers.py")
layers = importlib.util.module_from_spec(spec)
sys.modules["layers"] = layers  # its dataclasses look themselves up
spec.loader.exec_module(layers)
