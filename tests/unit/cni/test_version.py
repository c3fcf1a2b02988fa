"""Versions of the spec."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.errors import CNIError
from cnvnet.cni.version import SUPPORTED, ensure_compatible, parse_version

LISTED = '["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]'


@pytest.mark.parametrize("version", SUPPORTED)
def test_add_and_del_are_known_to_every_version(version: str) -> None:
    ensure_compatible("ADD", version)
    ensure_compatible("DEL", version)


@pytest.mark.parametrize(("command", "first"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
@pytest.mark.parametrize("version", SUPPORTED)
def test_a_command_needs_the_version_that_introduced_it(command: str, first: str, version: str) -> None:
    if parse_version(version) >= parse_version(first):
        ensure_compatible(command, version)
        return
    with pytest.raises(CNIError) as caught:
        ensure_compatible(command, version)
    assert (caught.value.code, caught.value.msg) == (1, f"config version does not allow {command}")


@pytest.mark.parametrize(
    ("command", "version", "expected"),
    [
        ("ADD", "1.2.0", (1, "incompatible CNI versions", f'config is "1.2.0", plugin supports {LISTED}')),
        ("ADD", "1.0", (1, "incompatible CNI versions", f'config is "1.0", plugin supports {LISTED}')),
        ("DEL", "x", (1, "incompatible CNI versions", f'config is "x", plugin supports {LISTED}')),
        ("CHECK", "0.5.0", (1, "incompatible CNI versions", f'config is "0.5.0", plugin supports {LISTED}')),
        ("CHECK", "1.2.0", (1, "plugin version does not allow CHECK", "")),
        ("GC", "2", (1, "plugin version does not allow GC", "")),
        ("GC", "1.0.0.0", (6, 'invalid version "1.0.0.0": too many parts', "")),
        (
            "STATUS",
            "1.x",
            (6, 'failed to convert minor version part "x": strconv.Atoi: parsing "x": invalid syntax', ""),
        ),
        (
            "CHECK",
            "9223372036854775808",
            (
                6,
                'failed to convert major version part "9223372036854775808": strconv.Atoi: '
                'parsing "9223372036854775808": value out of range',
                "",
            ),
        ),
    ],
)
def test_other_versions_are_refused_in_the_references_words(
    command: str, version: str, expected: tuple[int, str, str]
) -> None:
    with pytest.raises(CNIError) as caught:
        ensure_compatible(command, version)
    assert (caught.value.code, caught.value.msg, caught.value.details) == expected


@given(version=st.text())
def test_any_text_is_a_version_or_refused(version: str) -> None:
    code = 6
    try:
        parse_version(version)
    except CNIError as e:
        code = e.code
    assert code == 6
