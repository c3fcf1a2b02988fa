"""Domain names: which ones a guest can be given, and how they look in a packet (RFC 1035)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")

# What Kubernetes allows in a pod's dnsConfig; longer lists only come from a broken file.
_MOST_DOMAINS: Final = 32


def cleaned(name: str) -> str:
    """A name in lower case without its last dot, or "" for what is no name a guest could use.

    Underscores are let through (_msdcs and the like are searched), addresses are not, nor is the word DHCP
    that some systems leave in resolv.conf where a name should be.
    """
    name = name.strip().lower().removesuffix(".")
    if not name or len(name) > 253 or name == "dhcp":
        return ""
    labels = name.split(".")
    if labels[-1].isdigit() or not all(_is_label(label) for label in labels):
        return ""
    return name


def _is_label(label: str) -> bool:
    return 0 < len(label) < 64 and _LETTERS.issuperset(label) and label[0] != "-" and label[-1] != "-"


def cleaned_list(names: Iterable[str]) -> tuple[str, ...]:
    """The names of a search list that can be used, each once, in their order."""
    good = dict.fromkeys(cleaned(name) for name in names)
    return tuple(name for name in good if name)[:_MOST_DOMAINS]


def main_domain(search: Iterable[str]) -> str:
    """The one domain for clients that know only one: the longest, which is the pod's own namespace."""
    return max(search, key=len, default="")


def encode(name: str) -> bytes:
    """One cleaned name as labels with the closing zero."""
    return _labels(name.split(".")) + b"\0"


def encode_list(names: Iterable[str]) -> bytes:
    """Names one after the other, uncompressed, as DHCPv6 (RFC 8415, section 10) and RFC 8106 want them."""
    return b"".join(map(encode, names))


def _labels(labels: Iterable[str]) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in labels)


def compress(names: Iterable[str]) -> bytes:
    """A search list as DHCPv4 option 119 wants it (RFC 3397): a tail said before becomes a pointer to it."""
    data = b""
    places: dict[tuple[str, ...], int] = {}
    for name in names:
        labels = tuple(name.split("."))
        for index, label in enumerate(labels):
            tail = labels[index:]
            if tail in places:
                data += (0xC000 | places[tail]).to_bytes(2, "big")
                break
            if len(data) < 0x4000:  # what a pointer can reach
                places[tail] = len(data)
            data += _labels((label,))
        else:
            data += b"\0"
    return data
