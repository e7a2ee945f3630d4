"""One test function a layer, one item a row: made from subjects.toml."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
