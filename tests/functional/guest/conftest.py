"""What the tests of the guest services stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.functional.guest.running_loop import Lab, a_lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    with a_lab() as made:
        yield made
