"""These tests lean on what the other Python tests share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
