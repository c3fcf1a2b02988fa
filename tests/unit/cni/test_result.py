"""Results of every version, compared with what the reference library prints.

tests/data/cni_results.json was printed by containernetworking/cni v1.3.0: `Create` of each input in its
version, then `GetAsVersion` and `PrintTo` for every version.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.cni import request as requests
from cnvnet.cni.document import encode
from cnvnet.cni.errors import CNIError, InvalidConfig
from cnvnet.cni.result import (
    DNS,
    IP,
    Interface,
    Result,
    ResultRoute,
    ensure_renderable,
    parse,
    previous,
    render,
)
from cnvnet.cni.version import BEFORE_1_0, SUPPORTED, WITHOUT_INTERFACES
from tests.unit.cni.test_environment import COMPLETE
from tests.unit.cni.test_fields import JSON

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "cni_results.json").read_text()
)


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("case", CASES, ids=[f"case{number}" for number in range(len(CASES))])
def test_results_are_printed_as_the_reference_prints_them(case: dict[str, Any], version: str) -> None:
    result = parse(case["input"], case["version"])
    expected: str = case["printed"][version]
    if expected.startswith("error: "):
        with pytest.raises(InvalidConfig) as caught:
            render(result, version)
        assert f"error: {caught.value.msg}" == expected
    else:
        assert encode(render(result, version)).decode() == expected


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_result_without_addresses_can_be_refused_before_the_first_step(version: str) -> None:
    ensure_renderable(version, has_ips=True)
    if version not in WITHOUT_INTERFACES:
        ensure_renderable(version, has_ips=False)
        return
    with pytest.raises(InvalidConfig, match=r"^cannot convert: no valid IP addresses$"):
        ensure_renderable(version, has_ips=False)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"cniVersion": "9.9.9"}, 'prevResult.cniVersion: unsupported CNI result version "9.9.9"'),
    ({"ips": [{}]}, "prevResult.ips[0].address: required"),
    (
        {"ips": [{"address": "10.0.0.1"}]},
        'prevResult.ips[0].address: "10.0.0.1" is not in CIDR notation',
    ),
    (
        {"ips": [{"address": "10.0.0.1/8", "interface": -1}]},
        "prevResult.ips[0].interface: -1 is not between",
    ),
    (
        {"interfaces": [{"name": "a"}], "ips": [{"address": "10.0.0.1/8", "interface": 1}]},
        "prevResult.ips[0].interface: 1 is not between 0 and 0",
    ),
    ({"interfaces": {}}, "prevResult.interfaces: expected a list of objects, got an object"),
    ({"interfaces": [{"mtu": -1}]}, "prevResult.interfaces[0].mtu: -1 is not between"),
    ({"routes": [{"gw": "10.0.0.1"}]}, "prevResult.routes[0].dst: required"),
    ({"routes": [{"dst": "0.0.0.0/0", "scope": 256}]}, "prevResult.routes[0].scope: 256 is not between"),
    ({"dns": {"search": "x"}}, "prevResult.dns.search: expected a list of strings, got a string"),
    ({"cniVersion": "0.2.0", "ip4": {}}, "prevResult.ip4.ip: required"),
]


@pytest.mark.parametrize(("document", "msg"), REFUSED)
def test_what_is_no_result_is_refused_by_its_key(document: dict[str, Any], msg: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse(document, "1.1.0", "prevResult")
    assert caught.value.msg.startswith(msg)


def test_the_previous_result_is_read_in_the_configurations_version() -> None:
    def of(config: dict[str, Any]) -> Result | None:
        return previous(requests.parse(COMPLETE, json.dumps({"name": "net", **config}).encode()))

    address = IPv4Interface("10.0.0.5/24")
    assert of({}) is None
    assert of({"prevResult": None}) is None
    assert of({"prevResult": {}}) == Result()
    assert of({"prevResult": {"ip4": {"ip": "10.0.0.5/24"}}}) == Result(ips=(IP(address),))
    assert of({"cniVersion": "1.0.0", "prevResult": {"ips": [{"address": "10.0.0.5/24"}]}}) == Result(
        ips=(IP(address),)
    )
    older = {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.5/24"}}
    assert of({"cniVersion": "1.0.0", "prevResult": older}) == Result(ips=(IP(address),))
    with pytest.raises(InvalidConfig, match=r"^prevResult: expected an object, got a list$"):
        of({"prevResult": []})


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
UINT32 = st.integers(0, 2**32 - 1)

# Built from bytes: hypothesis' own addresses are many times slower. IPv4-mapped ones are read as IPv4.
ADDRESSES: st.SearchStrategy[IPv4Address | IPv6Address] = st.builds(IPv4Address, UINT32) | st.builds(
    IPv6Address, st.integers(2**64, 2**128 - 1)
)


def prefixed(address: IPv4Address | IPv6Address, length: int) -> IPv4Interface | IPv6Interface:
    if isinstance(address, IPv4Address):
        return IPv4Interface((address, length % 33))
    return IPv6Interface((address, length))


def network(address: IPv4Address | IPv6Address, length: int) -> IPv4Network | IPv6Network:
    return prefixed(address, length).network


INTERFACES = st.builds(
    Interface,
    TEXTS,
    st.just("") | TEXTS,
    st.just("") | TEXTS,
    UINT32,
    st.just("") | TEXTS,
    st.just("") | TEXTS,
)
PREFIXED = st.builds(prefixed, ADDRESSES, st.integers(0, 128))
NETWORKS = st.builds(network, ADDRESSES, st.integers(0, 128))
ROUTES = st.builds(
    ResultRoute,
    NETWORKS,
    st.none() | ADDRESSES,
    UINT32,
    UINT32,
    UINT32,
    st.none() | UINT32,
    st.none() | st.integers(0, 255),
)
SOME_TEXTS = st.lists(TEXTS, max_size=2).map(tuple)
RESULTS = st.builds(
    Result,
    st.lists(INTERFACES, min_size=1, max_size=3).map(tuple),
    st.lists(
        st.builds(IP, PREFIXED, st.none() | ADDRESSES, st.none() | st.just(0)),
        max_size=4,
    ).map(tuple),
    st.lists(ROUTES, max_size=3).map(tuple),
    st.builds(DNS, SOME_TEXTS, st.just("") | TEXTS, SOME_TEXTS, SOME_TEXTS),
)


@given(result=RESULTS, version=st.sampled_from(SUPPORTED))
def test_what_is_printed_is_read_back(result: Result, version: str) -> None:
    try:
        document = render(result, version)
    except InvalidConfig:
        assert version in WITHOUT_INTERFACES
        assert not result.ips
        return
    read = parse(document, "0.1.0")
    assert render(read, version) == document
    if version not in BEFORE_1_0:
        assert read == result


@given(document=st.dictionaries(TEXTS, JSON, max_size=4), version=st.sampled_from(SUPPORTED))
def test_any_object_is_a_result_or_refused(document: dict[str, Any], version: str) -> None:
    code = 7
    try:
        parse(document, version)
    except CNIError as e:
        code = e.code
    assert code in (6, 7)


KEYS = ("cniVersion", "interfaces", "ips", "ip4", "ip6", "routes", "dns")


@given(
    document=st.dictionaries(
        st.sampled_from(KEYS), JSON | st.lists(st.dictionaries(TEXTS, JSON, max_size=2), max_size=2)
    ),
    version=st.sampled_from(SUPPORTED),
)
def test_any_value_under_the_known_keys_is_a_result_or_refused(
    document: dict[str, Any], version: str
) -> None:
    code = 7
    try:
        parse(document, version)
    except CNIError as e:
        code = e.code
    assert code in (6, 7)
