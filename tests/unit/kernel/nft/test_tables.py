"""Elements as bytes and as text, and the order of a table's versions."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.kernel.nft.elements import encode
from cnvnet.kernel.nft.table_text import is_newer, render_load
from cnvnet.kernel.nft.tables import Element, explained
from tests.fakes.nft import FakeNft, render

TEXT = """\
table bridge t {
	counter lost { packets 0 bytes 0; }
	set macs { type ifname . ether_addr; }
	map to {
		type ipv4_addr : verdict
	}

	# A comment.
	chain guard_v2 {
		type filter hook prerouting priority -310; policy accept;
		iifname . ether saddr @macs accept
		ip saddr vmap @to
		jump more
	}

	chain more {
		meta protocol { arp, ip } counter name lost drop
	}
}
"""


def element(types: str, *key: str) -> Element:
    return Element("bridge", "t", "macs", tuple(types.split()), key)


MAC = element("ifname ether_addr", "veth1", "02:00:00:00:00:01")


@pytest.mark.parametrize(
    ("given_element", "first", "last"),
    [
        pytest.param(element("ifname", "veth1"), b"veth1" + bytes(11), b"", id="ifname"),
        pytest.param(element("ifname", "a" * 15), b"a" * 15 + b"\0", b"", id="longest-ifname"),
        pytest.param(element("ether_addr", "02:00:00:00:00:0A"), b"\2\0\0\0\0\x0a", b"", id="mac-alone"),
        pytest.param(MAC, b"veth1" + bytes(11) + b"\2\0\0\0\0\1\0\0", b"", id="mac-in-concatenation"),
        pytest.param(element("ipv4_addr", "10.0.0.5"), b"\x0a\0\0\5", b"", id="ipv4"),
        pytest.param(element("ipv6_addr", "fd00::5"), b"\xfd" + bytes(14) + b"\5", b"", id="ipv6"),
        pytest.param(element("ipv4_addr", "10.0.0.9/24"), b"\x0a\0\0\0", b"\x0a\0\0\xff", id="prefix"),
        pytest.param(element("ipv4_addr", "10.0.0.1-10.0.0.9"), b"\x0a\0\0\1", b"\x0a\0\0\x09", id="range"),
        pytest.param(
            element("ipv4_addr ipv4_addr", "10.0.0.5", "10.0.0.0/24"),
            b"\x0a\0\0\5\x0a\0\0\0",
            b"\x0a\0\0\5\x0a\0\0\xff",
            id="interval-in-concatenation",
        ),
        pytest.param(element("inet_proto inet_service", "6", "80"), b"\6\0\0\0\0\x50\0\0", b"", id="port"),
        pytest.param(element("integer48", "0x02000000000a"), b"\2\0\0\0\0\x0a", b"", id="raw"),
    ],
)
def test_a_key_is_what_the_kernel_compares_with(given_element: Element, first: bytes, last: bytes) -> None:
    assert encode(given_element) == (first, last)


@given(prefix=st.integers(0, 32), address=st.integers(0, 2**32 - 1))
def test_a_prefix_spans_all_its_addresses_and_no_others(prefix: int, address: int) -> None:
    dotted = ".".join(str(byte) for byte in address.to_bytes(4))
    first, last = (int.from_bytes(end) for end in encode(element("ipv4_addr", f"{dotted}/{prefix}")))
    assert first <= address <= last
    assert last - first + 1 == 2 ** (32 - prefix)
    assert first % 2 ** (32 - prefix) == 0


def test_an_unknown_datatype_is_an_error() -> None:
    with pytest.raises(ValueError, match="ct_state"):
        encode(element("ct_state", "new"))


def test_a_change_is_shown_in_nfts_own_words() -> None:
    entry = Element("inet", "m", "pods", ("ipv4_addr",), ("10.0.0.5",), "goto beyond")
    assert render(add=[entry, MAC], delete=[MAC, entry]) == (
        'delete element bridge t macs { "veth1" . 02:00:00:00:00:01 }\n'
        "delete element inet m pods { 10.0.0.5 }\n"
        "add element inet m pods { 10.0.0.5 : goto beyond }\n"
        'add element bridge t macs { "veth1" . 02:00:00:00:00:01 }\n'
    )


@pytest.mark.parametrize(
    ("chain", "newer"),
    [
        ("guard_v3", True),
        ("guard_v10", True),
        ("guard_v2", False),
        ("guard_v1", False),
        ("gate_v3", False),
        ("more", False),
        ("guard_vx", False),
        ("guard_v", False),
    ],
)
def test_versions_are_numbers_at_the_end_of_the_name(chain: str, *, newer: bool) -> None:
    assert is_newer(chain, "guard_v2") is newer


def test_loading_replaces_the_texts_chains_and_older_versions_and_no_others() -> None:
    script = render_load("bridge", "t", "guard_v2", TEXT, ["guard_v1", "more", "beyond"])
    assert script == (
        "flush chain bridge t guard_v1\nflush chain bridge t more\ndelete chain bridge t guard_v1\n" + TEXT
    )


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EOPNOTSUPP, "modprobe nf_tables"),
        (errno.EPERM, "CAP_NET_ADMIN"),
        (errno.ENOENT, "not loaded"),
        (errno.ENOMEM, "table bridge t"),
    ],
)
def test_a_refusal_says_what_to_do(number: int, says: str) -> None:
    error = explained(number, "table bridge t")
    assert error.errno == number
    assert says in str(error)


def test_the_fake_reads_chains_and_rules_out_of_a_table() -> None:
    nft = FakeNft()
    nft.ensure("bridge", "t", "guard_v2", TEXT)
    assert {name: len(rules) for name, rules in nft.tables["bridge", "t"].chains.items()} == {
        "guard_v2": 3,
        "more": 1,
    }
    assert set(nft.tables["bridge", "t"].sets) == {"macs", "to"}
    assert [rule.target for rule in nft.rules("bridge", "t", "guard_v2")] == ["", "", "more"]
