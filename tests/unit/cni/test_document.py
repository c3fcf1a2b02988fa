"""JSON as Go reads and writes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.document import (
    Malformed,
    decode,
    decode_object,
    encode,
    error_document,
    escaped,
    quoted,
    quoted_list,
)
from cnvnet.cni.errors import CNIError
from tests.unit.cni.test_fields import JSON


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"  \n",
        b"{",
        b"{} x",
        b"{}{}",
        b"\xef\xbb\xbf{}",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 01}',
        b'{"a": "\n"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{\x00}\x00",
        b"\x00",
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_what_go_refuses_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        decode(raw)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": "\xff\xfe"}', {"a": "\ufffd\ufffd"}),
        (b'{"a": "\\ud800x"}', {"a": "\ufffdx"}),
        (b'{"\\uDC00": ["\\ud83d\\ude00"]}', {"\ufffd": ["\U0001f600"]}),
        (b' \t\r\n{"a": 1.5} \n', {"a": 1.5}),
    ],
)
def test_text_that_is_no_unicode_is_replaced(raw: bytes, value: object) -> None:
    assert decode(raw) == value


@pytest.mark.parametrize("raw", [b"[]", b'"x"', b"3", b"1.5", b"true"])
def test_a_document_is_an_object(raw: bytes) -> None:
    with pytest.raises(Malformed, match=r"^expected an object, got "):
        decode_object(raw)


def test_null_is_an_empty_object() -> None:
    assert decode_object(b"null") == {}


def test_of_duplicates_the_later_stands_last() -> None:
    assert list(decode_object(b'{"a": 1, "A": 2, "a": 3}').items()) == [("A", 2), ("a", 3)]


def test_documents_are_indented_by_four_spaces_and_safe_in_html() -> None:
    assert encode({"a": {"b": "<&>\u2028"}, "c": {}}).decode() == (
        '{\n    "a": {\n        "b": "\\u003c\\u0026\\u003e\\u2028"\n    },\n    "c": {}\n}'
    )
    assert encode({"a": [1, "é"]}, indent=False).decode() == '{"a":[1,"é"]}'


def test_bytes_that_are_no_text_are_printed_as_replacement_characters() -> None:
    assert json.loads(encode({"a": b"\xff\xfe".decode("utf-8", "surrogateescape")})) == {"a": "\ufffd\ufffd"}


def test_the_error_object_leaves_out_what_is_empty() -> None:
    assert error_document(CNIError(7, "x")) == {"code": 7, "msg": "x"}
    assert error_document(CNIError(7, "x", "y"), "1.0.0") == {
        "cniVersion": "1.0.0",
        "code": 7,
        "msg": "x",
        "details": "y",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", '"a b"'),
        ('"\\', '"\\"\\\\"'),
        ("\n\t\x01\x7f", '"\\n\\t\\x01\\x7f"'),
        ("é\u200b\U000e0001", '"é\\u200b\\U000e0001"'),
        (b"\xff".decode("utf-8", "surrogateescape"), '"\\xff"'),
    ],
)
def test_quoting_is_gos(text: str, expected: str) -> None:
    assert quoted(text) == expected


def test_lists_are_quoted_as_go_does() -> None:
    assert quoted_list(["a", 'b"']) == '["a" "b\\""]'


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_decoded_or_malformed(raw: bytes) -> None:
    try:
        value = decode(raw)
    except Malformed:
        return
    encode(value)


@given(value=JSON, indent=st.booleans())
def test_what_is_written_is_read_back(value: Any, indent: bool) -> None:
    assert decode(encode(value, indent=indent)) == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("bridge a\nb: no\tsuch\r\nlink", "bridge a b: no such  link"),
        ("\x1b[31mred\x7f\0", "\\x1b[31mred\\x7f\\x00"),
        ("brücke-β  “x”", "brücke-β  “x”"),
    ],
)
def test_messages_are_one_line_that_no_terminal_obeys(text: str, line: str) -> None:
    assert error_document(CNIError(7, text))["msg"] == line


@pytest.mark.parametrize(
    ("text", "printed"),
    [("a\nb", "a\\nb"), ("\x1b[31mred", "\\x1b[31mred"), ("straße", "straße"), ("\udcff", "\\udcff")],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, printed: str) -> None:
    assert escaped(text) == printed
