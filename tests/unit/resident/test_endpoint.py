"""The address of the metrics."""

from __future__ import annotations

import pytest

from cnvnet.resident.endpoint import parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9440", ("127.0.0.1", 9440)),
        ("[::1]:0", ("::1", 0)),
        (":9440", ("", 9440)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_an_address(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["9440", "127.0.0.1", "127.0.0.1:", "::1:9440", "h:65536", "h:-1", "h:x"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_address(text)
