"""The undo keys of a record are read whatever shape they have."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.attachment.record import UndoKeys


def test_undo_keys_of_the_expected_shape_are_given() -> None:
    keys = UndoKeys({"text": "x", "number": 7, "items": ["a", 1], "fields": {"k": "v"}})
    assert (keys.text("text"), keys.number("number")) == ("x", 7)
    assert (keys.items("items"), keys.texts("items")) == (["a", 1], ("a",))
    assert keys.fields("fields") == {"k": "v"}


@pytest.mark.parametrize("undo", [{}, *({"key": value} for value in (None, 1.5, object()))])
def test_undo_keys_of_another_shape_are_empty(undo: dict[str, Any]) -> None:
    keys = UndoKeys(undo)
    empty = (keys.text("key"), keys.number("key"), keys.items("key"), keys.texts("key"), keys.fields("key"))
    assert empty == ("", 0, [], (), {})
