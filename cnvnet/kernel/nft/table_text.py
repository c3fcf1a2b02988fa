"""The text of a table of ours: what the kernel counts of it, and the script that loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

# What a chain's block says beside its rules.
_NO_RULES: Final = ("type", "policy", "comment", "#")


@cache
def uses(text: str) -> Mapping[str, int]:
    """The chains of a table's text and the `use` that the kernel counts for each, when all is there."""
    counts: dict[str, int] = {}
    inside = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["chain"]:
            inside = words[1]
            counts.setdefault(inside, 0)
        elif words == ["}"]:
            inside = ""
        elif inside and words and not words[0].startswith(_NO_RULES):
            counts[inside] += 1
        for target in targets(words):
            counts[target] = counts.get(target, 0) + 1
    return counts


def targets(words: Sequence[str]) -> list[str]:
    """The chains that a rule's words jump or go to, through a verdict map as well."""
    return [words[at].rstrip(",;") for at in range(1, len(words)) if words[at - 1] in ("jump", "goto")]


def render_load(family: str, table: str, version: str, text: str, present: Sequence[str] = ()) -> str:
    """The script that loads a table's text over the chains `present`: elements and chains of no text stay.

    Chains the text declares are filled anew; those of an older version go.
    """
    words = [line.split() for line in text.splitlines()]
    declared = {word[1] for word in words if word[:1] == ["chain"]}
    old = [name for name in present if is_newer(version, name)]
    lines = [f"flush chain {family} {table} {name}" for name in present if name in declared or name in old]
    lines += [f"delete chain {family} {table} {name}" for name in old]
    return "".join(f"{line}\n" for line in lines) + text


def is_newer(chain: str, version: str) -> bool:
    """Whether a chain is the later version of what `version` names: `guard_v3` of `guard_v2`."""
    base, _, number = version.rpartition("_v")
    other_base, _, other = chain.rpartition("_v")
    return base == other_base and number.isdecimal() and other.isdecimal() and int(other) > int(number)
