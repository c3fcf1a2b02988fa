"""Documents that are nearly right: what a parser meets by mistake, and what is sent to it on purpose."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any, Final, cast

# Values that break what reads them carelessly.
ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1,
    1 << 63,
    -(1 << 63) - 1,
    10**30,
    0.5,
    1e308,
    "",
    "a\nb",
    "\x1b[31m",
    "\0",
    "\ud800",
    "x" * 70_000,
    "../../etc/passwd",
    "/dev/zero",
    "%s%n",
    "10.0.0.0/33",
    "::/0",
    "0.0.0.0",
    "ff:ff:ff:ff:ff:ff",
    [],
    [[]],
    {},
    {"": None},
)
# Written as bytes, since no encoder writes them.
RAW: Final = (
    b"1e400",
    b"NaN",
    b"-Infinity",
    b"01",
    b"'x'",
    b"\xff\xfe",
    b'"\\ud800"',
    b'{"a":1,"a":2}',
    b"[" * 5_000,
)


def documents(seed: int, sound: list[dict[str, Any]]) -> Iterator[bytes]:
    """Endlessly: sound documents with keys and values exchanged, and their bytes cut, doubled or damaged."""
    chance = random.Random(seed)
    while True:
        document = copy.deepcopy(chance.choice(sound))
        for _ in range(chance.randrange(4)):
            _change(chance, document)
        raw = json.dumps(document, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        yield _damaged(chance, raw) if chance.random() < 0.3 else raw


Place = tuple[dict[str, Any], str] | tuple[list[object], int]


def _places(inside: object) -> Iterator[Place]:
    """Every member of every object and list."""
    if isinstance(inside, dict):
        members = cast("dict[str, Any]", inside)
        for key in members:
            yield members, key
            yield from _places(members[key])
    elif isinstance(inside, list):
        items = cast("list[object]", inside)
        for at, item in enumerate(items):
            yield items, at
            yield from _places(item)


def _change(chance: random.Random, document: dict[str, Any]) -> None:
    """Somewhere in it another value, another key, a key less, or one twice in another case."""
    places = list(_places(document))
    if not places:
        return
    inside, key = chance.choice(places)
    what = chance.randrange(5)
    if isinstance(inside, list) or isinstance(key, int) or what > 2:
        cast("dict[Any, Any]", inside)[key] = chance.choice(ODD)
    elif what == 0:
        inside[key + chance.choice("sx_ ")] = inside.pop(key)
    elif what == 1:
        del inside[key]
    else:
        inside[key.swapcase()] = inside[key]


def _damaged(chance: random.Random, raw: bytes) -> bytes:
    damaged = bytearray(raw)
    at = chance.randrange(len(damaged))
    what = chance.randrange(4)
    if what == 0:
        del damaged[at:]
    elif what == 1:
        damaged[at:at] = chance.choice(RAW)
    elif what == 2:
        damaged[at] = chance.randrange(256)
    else:
        damaged += damaged[at:]
    return bytes(damaged)
