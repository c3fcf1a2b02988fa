"""Fixtures of the tests with virtual machines: how QEMU comes by its tap."""

from __future__ import annotations

import pytest

from scripts.guest import tap


@pytest.fixture
def _opened() -> None:
    """QEMU opens its tap itself, which is then the tap's owner's to allow."""
    if not tap.can_have_own_device():
        pytest.skip(
            "no device node can be made here, so QEMU is handed its tap and the tap's owner is not asked"
        )


@pytest.fixture
def _handed(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is handed its tap, as where no device node can be made."""
    monkeypatch.setattr(tap, "can_have_own_device", lambda: False)


@pytest.fixture(params=["opened", "handed"])
def _either_way(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"_{request.param}")
