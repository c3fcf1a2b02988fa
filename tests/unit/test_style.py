"""Prose, messages and the names of tests are free of the words that docs/style.md drops."""

from __future__ import annotations

import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DROPPED = re.compile(
    r"\b(who(m|m?ever)|(no|some|any|every)body|shall|he|him|his|lanes?|doors?|deeds?|wish(es|ed)?"
    r"|bur(y|ies|ied)|lets? go of|look(s|ed|ing)? after|puts? back|made whole|comes? round"
    r"|told|mine|woken?|wakes?|whose turn|one behind the other|by hand"
    # The reference plugin's own message has it; programs compare it.
    r"|(?<!promiscuous mode )at the same time)\b",
    re.IGNORECASE,
)
CHECKED = ("cnvnet", "plugins", "ipam", "scripts", "launcher", "conf", "docs", ".ci", "*.md", "tests/*.py")
# Their words are listed there on purpose, or were published.
EXEMPT = {"docs/style.md", "CHANGELOG.md", "tests/unit/test_style.py"}
# Tokens of a Python file that are prose, or may be; f-strings are tokens of their own from Python 3.12 on.
PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", *CHECKED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file() and name not in EXEMPT]


def prose(path: Path) -> str:
    """What of a file is written for people: all of it, but of a Python file no names."""
    if path.suffix != ".py":
        return path.read_text()
    with tokenize.open(path) as source:
        tokens = [token for token in tokenize.generate_tokens(source.readline) if token.type in PROSE]
    return "\n".join(token.string for token in tokens)


@pytest.mark.parametrize("name", files())
def test_prose_names_who_acts_in_the_fields_words(name: str) -> None:
    text = re.sub(r"\s+[#*]?\s*", " ", prose(ROOT / name))
    assert [match[0] for match in DROPPED.finditer(text)] == [], name


@pytest.mark.parametrize("name", [name for name in files() if name.startswith("tests/")])
def test_names_of_tests_state_the_rule_in_the_fields_words(name: str) -> None:
    names = re.findall(r"def (test_\w+)", (ROOT / name).read_text())
    riddles = [each for each in names if DROPPED.search(each.replace("_", " ")) or "test_who_" in each]
    assert riddles == [], name
