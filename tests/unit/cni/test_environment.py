"""Which variables a command needs and what may stand in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni import environment
from cnvnet.cni.errors import CNIError

COMPLETE = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "dummy-0",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
}


def complaint(**changed: str) -> tuple[int, str, str]:
    with pytest.raises(CNIError) as caught:
        environment.command({**COMPLETE, **changed})
    return caught.value.code, caught.value.msg, caught.value.details


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION", "FOO"])
def test_a_complete_environment_is_taken_for_every_command(command: str) -> None:
    assert environment.command({**COMPLETE, "CNI_COMMAND": command}) == command


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("", "CNI_COMMAND"),
        ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
        ("GC", "CNI_PATH"),
        ("STATUS", "CNI_PATH"),
    ],
)
@pytest.mark.parametrize("empty", [{}, dict.fromkeys(COMPLETE, "")], ids=["unset", "empty"])
def test_everything_missing_is_named_at_once(command: str, missing: str, empty: dict[str, str]) -> None:
    with pytest.raises(CNIError) as caught:
        environment.command({**empty, "CNI_COMMAND": command})
    assert caught.value.code == 4
    assert caught.value.msg == f"required env variables [{missing}] missing"


def test_unknown_commands_and_version_need_nothing_else() -> None:
    assert environment.command({"CNI_COMMAND": "FOO"}) == "FOO"
    assert environment.command({"CNI_COMMAND": "VERSION"}) == "VERSION"


@pytest.mark.parametrize(
    "name", ["", ".", "-a", "_a", "a/b", "a b", "a\n", "ä", "a\u200b", "a\udcff", "../x"]
)
def test_a_container_id_is_a_plain_name(name: str) -> None:
    if name:
        assert complaint(CNI_CONTAINERID=name) == (4, "invalid characters in containerID", name)
    assert not environment.is_name(name)


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-d", "a" * 64, "a.."])
def test_plain_names_are_taken(name: str) -> None:
    assert environment.is_name(name)


@pytest.mark.parametrize(
    ("name", "msg"),
    [
        ("a" * 16, "interface name is too long"),
        ("ä" * 8, "interface name is too long"),
        (".", "interface name is . or .."),
        ("..", "interface name is . or .."),
        ("a/b", "interface name contains / or : or whitespace characters"),
        ("a:b", "interface name contains / or : or whitespace characters"),
        ("a b", "interface name contains / or : or whitespace characters"),
        ("eth0\n", "interface name contains / or : or whitespace characters"),
        ("a\u00a0", "interface name contains / or : or whitespace characters"),
        ("a\u3000", "interface name contains / or : or whitespace characters"),
    ],
)
def test_interface_names_the_kernel_would_refuse_are_refused(name: str, msg: str) -> None:
    assert complaint(CNI_IFNAME=name)[:2] == (4, msg)


@pytest.mark.parametrize("name", ["a" * 15, "ä" * 7, "...", "a\x1f", "a\u200b"])
def test_interface_names_the_kernel_would_take_are_taken(name: str) -> None:
    environment.ensure_ifname(name)


def test_a_malformed_name_is_reported_before_what_is_missing_behind_it() -> None:
    assert complaint(CNI_CONTAINERID="a b", CNI_PATH="")[1] == "invalid characters in containerID"
    assert complaint(CNI_CONTAINERID="", CNI_IFNAME="a b")[1].startswith("interface name contains")


def test_names_are_not_looked_at_where_the_command_does_not_need_them() -> None:
    assert environment.command({**COMPLETE, "CNI_COMMAND": "GC", "CNI_CONTAINERID": "a b"}) == "GC"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("true", True), ("TRUE", True), ("yes", False), ("0", False), ("", False)],
)
def test_the_override_is_one_or_true(value: str, expected: bool) -> None:
    assert environment.overrides_netns({"CNI_NETNS_OVERRIDE": value}) is expected


@given(
    env=st.dictionaries(st.sampled_from(sorted(COMPLETE)), st.text(st.characters(exclude_categories=["Cs"])))
)
def test_any_environment_is_taken_or_refused_with_code_4(env: dict[str, str]) -> None:
    code = 4
    try:
        environment.command(env)
    except CNIError as e:
        code = e.code
    assert code == 4
