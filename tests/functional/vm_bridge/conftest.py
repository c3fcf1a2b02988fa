from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functional.vm_bridge.vm_bridge_pod import Lab, a_lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with a_lab(tmp_path / "lab") as made:
        yield made
