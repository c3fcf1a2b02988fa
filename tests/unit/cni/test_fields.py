"""Keys as Go reads them, types strictly, and complaints that name the key."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni.document import decode_object
from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields, as_interface_address, as_mac

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def fields(text: str) -> Fields:
    return Fields(decode_object(text.encode()))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ('{"vlan": 1}', 1),
        ('{"VLAN": 1}', 1),
        ('{"vLaN": 1, "Vlan": 2}', 2),
        ('{"vlan": 1, "VLAN": 2, "vlan": 3}', 3),
        ('{"vlan": 3, "vlan": null}', 3),
        ('{"vlan": 3, "Vlan": null}', 3),
        ('{"vlan": null}', 7),
        ("{}", 7),
        ("null", 7),
    ],
)
def test_the_last_spelling_of_a_key_that_is_not_null_counts(document: str, expected: int) -> None:
    assert fields(document).integer("vlan", 7) == expected


def test_the_letters_that_go_folds_to_ascii_are_folded() -> None:
    assert fields('{"macſpoofch\u212a": true}').flag("macspoofchk")


Reader = Callable[[Fields], object]
REFUSED: list[tuple[Reader, str, str]] = [
    (lambda f: f.integer("k"), '"1"', "k: expected an integer, got a string"),
    (
        lambda f: f.integer("k"),
        "1.0",
        "k: expected an integer, got a number with a fraction or exponent",
    ),
    (
        lambda f: f.integer("k"),
        "1e3",
        "k: expected an integer, got a number with a fraction or exponent",
    ),
    (lambda f: f.integer("k"), "true", "k: expected an integer, got true"),
    (lambda f: f.integer("k"), "[]", "k: expected an integer, got a list"),
    (
        lambda f: f.integer("k"),
        "9223372036854775808",
        "k: 9223372036854775808 is more than 9223372036854775807",
    ),
    (lambda f: f.integer("k", minimum=0, maximum=4094), "5000", "k: 5000 is not between 0 and 4094"),
    (lambda f: f.integer("k", minimum=0), "-1", "k: -1 is less than 0"),
    (lambda f: f.flag("k"), '"true"', "k: expected true or false, got a string"),
    (lambda f: f.flag("k"), "1", "k: expected true or false, got an integer"),
    (lambda f: f.text("k"), "1", "k: expected a string, got an integer"),
    (lambda f: f.text("k"), "{}", "k: expected a string, got an object"),
    (lambda f: f.required("k"), '""', "k: required"),
    (lambda f: f.required("k"), "null", "k: required"),
    (lambda f: f.texts("k"), '"a"', "k: expected a list of strings, got a string"),
    (lambda f: f.texts("k"), '["a", 1]', "k[1]: expected a string, got an integer"),
    (lambda f: f.fields("k"), "[]", "k: expected an object, got a list"),
    (lambda f: f.each("k"), "{}", "k: expected a list of objects, got an object"),
    (lambda f: f.each("k"), "[{}, null]", "k[1]: expected an object, got null"),
    (lambda f: f.each_list("k"), "[[{}], {}]", "k[1]: expected a list of objects, got an object"),
    (lambda f: f.each_list("k"), "[[{}, 3]]", "k[0][1]: expected an object, got an integer"),
    (lambda f: f.address("k"), '"10.0.0.256"', 'k: "10.0.0.256" is not an IP address'),
    (lambda f: f.address("k"), '"fe80::1%eth0"', 'k: "fe80::1%eth0" is not an IP address'),
    (lambda f: f.address("k"), '"10.0.0.1/8"', 'k: "10.0.0.1/8" is not an IP address'),
    (lambda f: f.network("k"), '"10.0.0.0"', 'k: "10.0.0.0" is not in CIDR notation'),
    (lambda f: f.network("k"), '"10.0.0.0/33"', 'k: "10.0.0.0/33" is not in CIDR notation'),
    (
        lambda f: f.network("k"),
        '"10.0.0.0/255.0.0.0"',
        'k: "10.0.0.0/255.0.0.0" is not in CIDR notation',
    ),
    (lambda f: f.network("k"), '"::/129"', 'k: "::/129" is not in CIDR notation'),
    (lambda f: f.network("k"), '"10.0.0.0/-1"', 'k: "10.0.0.0/-1" is not in CIDR notation'),
    (lambda f: f.integers("k", minimum=1, maximum=9), "1", "k: expected a list of integers, got an integer"),
    (
        lambda f: f.integers("k", minimum=1, maximum=9),
        "[1, true]",
        "k[1]: expected an integer, got true",
    ),
    (lambda f: f.integers("k", minimum=1, maximum=9), "[1, 10]", "k[1]: 10 is not between 1 and 9"),
    (lambda f: f.mac("k"), '"02:00:00:00:00"', 'k: "02:00:00:00:00" is not a MAC address'),
    (lambda f: f.mac("k"), '"0 :00:00:00:00:00"', 'k: "0 :00:00:00:00:00" is not a MAC address'),
    (lambda f: f.mac("k"), '"02:00:00:00:00:0g"', 'k: "02:00:00:00:00:0g" is not a MAC address'),
    (
        lambda f: f.mac("k", unicast=True),
        '"01:00:5e:00:00:01"',
        'k: "01:00:5e:00:00:01" is a multicast MAC address',
    ),
    (
        lambda f: f.mac("k", unicast=True),
        '"00:00:00:00:00:00"',
        'k: "00:00:00:00:00:00" cannot be the MAC address of an interface',
    ),
]


@pytest.mark.parametrize(("read", "value", "complaint"), REFUSED)
def test_what_cannot_be_read_is_refused_by_name(read: Reader, value: str, complaint: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        read(fields(f'{{"k": {value}}}'))
    assert caught.value.msg == complaint
    assert caught.value.code == 7


def test_a_nested_complaint_names_the_whole_path() -> None:
    ranges = fields('{"ipam": {"ranges": [[{"subnet": 5}]]}}').fields("ipam").each_list("ranges")
    assert ranges is not None
    with pytest.raises(InvalidConfig, match=r"^ipam\.ranges\[0\]\[0\]\.subnet: expected a string"):
        ranges[0][0].text("subnet")


def test_absent_null_and_empty_lists_are_distinguished() -> None:
    assert fields("{}").each("k") is None
    assert fields('{"k": null}').each("k") is None
    assert fields('{"k": []}').each("k") == []


def test_long_rubbish_does_not_make_a_long_message() -> None:
    with pytest.raises(InvalidConfig) as caught:
        fields('{"k": "%s"}' % ("x" * 10000)).address("k")
    assert len(caught.value.msg) < 120


@pytest.mark.parametrize(
    "text", ["02:AB:00:00:00:01", "02-ab-00-00-00-01", "02ab.0000.0001", "02:ab:00:00:00:01"]
)
def test_every_notation_of_a_mac_gets_one_form(text: str) -> None:
    assert as_mac(text, "mac") == "02:ab:00:00:00:01"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.5/24", "10.0.0.5/24"),
        ("2001:DB8::5/64", "2001:db8::5/64"),
        ("::ffff:10.0.0.5/120", "10.0.0.5/24"),
    ],
)
def test_interface_addresses_keep_their_host_bits(text: str, expected: str) -> None:
    assert as_interface_address(text, "address") == ip_interface(expected)


def test_networks_and_addresses_are_values() -> None:
    read = fields('{"net": "10.0.0.5/24", "ip": "::ffff:10.0.0.1", "none": ""}')
    assert read.network("net") == ip_network("10.0.0.0/24")
    assert read.address("ip") == ip_address("10.0.0.1")
    assert read.address("none") is None
    assert read.network("none") is None
    assert read.mac("none") == ""


READERS: tuple[Reader, ...] = (
    lambda f: f.text("k"),
    lambda f: f.integer("k"),
    lambda f: f.flag("k"),
    lambda f: f.texts("k"),
    lambda f: f.integers("k", minimum=0, maximum=9),
    lambda f: f.fields("k"),
    lambda f: f.each("k"),
    lambda f: f.each_list("k"),
    lambda f: f.address("k"),
    lambda f: f.network("k"),
    lambda f: f.mac("k", unicast=True),
)


@given(value=JSON, reader=st.sampled_from(READERS))
def test_any_value_is_read_or_refused(value: object, reader: Reader) -> None:
    complaint = "k"
    try:
        reader(Fields({"k": value}))
    except InvalidConfig as e:
        complaint = e.msg
    assert complaint.startswith("k")
