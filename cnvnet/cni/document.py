"""JSON as the reference plugins read and write it, so that theirs and ours agree to the byte.

Reading follows Go's encoding/json (bad UTF-8 becomes U+FFFD; a byte order mark, NaN or trailing text is an
error; a later duplicate replaces an earlier one), writing follows its Marshal and MarshalIndent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from cnvnet.cni.errors import CNIError

# Bytes of stdin that are read at most: the largest thing in a request, a GC's list of attachments, is some
# 100 bytes for each of a node's pods.
LIMIT: Final = 16 * 1024 * 1024


class Malformed(ValueError):
    """Not JSON, or JSON that cannot be a configuration; the text says where."""


def decode(raw: bytes) -> object:
    """The value of a JSON document; Malformed instead of any other exception.

    Objects are dicts in which the later duplicate stands last, which `Fields` relies on.
    """
    text = raw.decode("utf-8", "replace")
    if text.startswith("\ufeff"):
        raise Malformed("a byte order mark in front of the document")
    try:
        value: object = json.loads(
            text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_refused_constant
        )
        # An escaped half of a surrogate pair is no character: it could never be printed again.
        return _without_surrogates(value) if "\\ud" in text.lower() else value
    except Malformed:
        raise
    except json.JSONDecodeError as e:
        if not text.strip():
            raise Malformed("unexpected end of JSON input") from None
        raise Malformed(f"{e.msg[:1].lower()}{e.msg[1:]}: line {e.lineno} column {e.colno}") from None
    except RecursionError:
        raise Malformed("exceeded max depth") from None
    except ValueError:
        # What is left is Python's own limit on the digits of an integer.
        raise Malformed("a number with too many digits") from None


def decode_object(raw: bytes) -> Mapping[str, Any]:
    """The object a document consists of; `null` is an empty one, as for Go. Malformed for anything else."""
    value = decode(raw)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"expected an object, got {kind(value)}")
    return cast("Mapping[str, Any]", value)


def encode(value: object, *, indent: bool = True) -> bytes:
    """The document as Go prints it: compact or indented by four spaces, and safe inside HTML."""
    text = _indented(value) if indent else _compact(value)
    for character, escape in _HTML:
        text = text.replace(character, escape)
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Bytes of the environment that are no UTF-8 (surrogateescape): U+FFFD each, as in Go.
        return printable(text).encode()


def error_document(error: CNIError, cni_version: str = "") -> dict[str, Any]:
    """The spec's error object; `cniVersion` (which the reference leaves out) once it is known."""
    document: dict[str, Any] = {"cniVersion": cni_version} if cni_version else {}
    document |= {"code": error.code, "msg": in_one_line(error.msg)}
    return document | {"details": error.details} if error.details else document


def in_one_line(text: str) -> str:
    r"""The text as a log or a terminal may show it.

    A line break is a space; other control characters, which a name may have, are `\xNN`.
    """
    if text.isprintable():
        return text
    return "".join(" " if c in "\t\n\r" else ascii(c)[1:-1] if c < " " or c == "\x7f" else c for c in text)


def escaped(text: str) -> str:
    """With an escape for each character that a terminal would obey or that would begin another line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_object(value: object) -> dict[str, Any]:
    """A JSON object; an empty one for any other value."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def printable(text: str) -> str:
    """The text with U+FFFD for everything that cannot be written as UTF-8."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def kind(value: object) -> str:
    """What sort of JSON value it is, for messages."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a number with a fraction or exponent"
    if value is None:
        return "null"
    return "an object" if isinstance(value, Mapping) else "a list"


def quoted(text: str) -> str:
    """The text as Go's %q shows it, for messages that are compared with the reference's."""
    return '"' + "".join(_GO_ESCAPES.get(c) or _go_character(c) for c in text) + '"'


def quoted_list(texts: Sequence[str]) -> str:
    """A list of strings as Go's %q shows it: ["a" "b"]."""
    return "[" + " ".join(quoted(text) for text in texts) + "]"


_compact: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_indented: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=4).encode
# Go's encoding/json escapes these, so that a document may stand in a page of HTML or in JavaScript.
_HTML = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))
_GO_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}


def _go_character(character: str) -> str:
    if character.isprintable():
        return character
    point = ord(character)
    if 0xDC80 <= point <= 0xDCFF:  # a byte that is no UTF-8, as surrogateescape keeps it
        return f"\\x{point - 0xDC00:02x}"
    if point < 0x80:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    made.clear()
    for key, value in pairs:
        if key in made and value is None:
            continue  # null leaves alone what an earlier duplicate said
        made.pop(key, None)  # so that the key moves to the end
        made[key] = value
    return made


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Malformed("a number with too many digits")
    return value


def _refused_constant(text: str) -> float:
    raise Malformed(f"{text} is not a JSON number")


def _without_surrogates(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_without_surrogates(item) for item in cast("Sequence[object]", value)]
    if isinstance(value, dict):
        items = cast("Mapping[str, object]", value).items()
        return {printable(key): _without_surrogates(item) for key, item in items}
    return value
