"""How much is done, and the fixtures of the functional tests."""

from __future__ import annotations

import os
from typing import Final

from tests.functional.conftest import node, way_of_calls

# pytest finds a folder's fixtures in its conftest.
__all__ = ["TIMES", "node", "way_of_calls"]

# How many times as much as in CI.
TIMES: Final = int(os.environ.get("CNV_FAULTS", "1"))
