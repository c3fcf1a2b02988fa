"""KubeVirt's names: its own vectors, and what no name may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnvnet.vm import names
from cnvnet.vm.names import PodLinkNames

# pkg/network/namescheme/networknamescheme_test.go
VECTORS = {
    "network1": "poda7662f44d65",
    "network2": "pod27f4a77f94e",
    "default": "pod37a8eec1ce1",
    "red": "podb1f51a511f1",
    "blue": "pod16477688c0e",
    "mynet1": "pod1fd0bc36a90",
    "bridge-net": "pod03b731d2111",
}


@pytest.mark.parametrize(("network", "ifname"), VECTORS.items(), ids=VECTORS)
def test_a_networks_interface_is_called_by_its_hash(network: str, ifname: str) -> None:
    assert names.hashed(network) == ifname
    assert names.is_hashed(ifname)


@pytest.mark.parametrize(
    "expected",
    [
        pytest.param(PodLinkNames("eth0", "k6t-eth0", "eth0-nic", "tap0"), id="primary"),
        pytest.param(
            PodLinkNames("ovn-udn1", "k6t-ovn-udn1", "ovn-udn1-nic", "tap0"), id="primary of another name"
        ),
        pytest.param(
            PodLinkNames("pod16477688c0e", "k6t-16477688c0e", "16477688c0e-nic", "tap16477688c0e"),
            id="secondary",
        ),
        pytest.param(PodLinkNames("net1", "k6t-net1", "net1-nic", "tap1"), id="ordinal"),
        pytest.param(
            PodLinkNames("elevenchars", "k6t-elevenchars", "elevenchars-nic", "tap0"), id="just fits"
        ),
        # sha256 of the name
        pytest.param(
            PodLinkNames("twelve-chars", "k6t-8dd1fe39f81", "8dd1fe39f81-nic", "tap0"),
            id="too long for an affix",
        ),
    ],
)
def test_all_links_are_called_after_the_pods_interface(expected: PodLinkNames) -> None:
    assert names.of(expected.pod) == expected


@pytest.mark.parametrize("ifname", ["pod", "podman0", "pod16477688c0", "pod16477688C0E", "xod16477688c0e"])
def test_what_only_looks_like_a_hash_is_none(ifname: str) -> None:
    assert not names.is_hashed(ifname)
    assert names.of(ifname).tap == "tap0"


def test_only_net_and_a_number_is_of_the_older_scheme() -> None:
    assert [
        name for name in ("net1", "net12", "net", "net1a", "mynet1", "net٣") if names.is_ordinal(name)
    ] == [
        "net1",
        "net12",
    ]


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=15))
def test_every_name_is_one_that_a_link_can_have_and_none_is_of_the_older_scheme(ifname: str) -> None:
    made = names.of(ifname)
    for name in (made.bridge, made.nic, made.tap):
        assert 0 < len(name.encode(errors="surrogatepass")) <= 15
        assert not names.is_ordinal(name)
    assert not names.is_ordinal(names.hashed(ifname))


@pytest.mark.parametrize(
    ("pod", "instance"),
    [
        ("virt-launcher-web-x7k2p", "web"),
        ("virt-launcher-web-1.prod-x7k2p", "web-1.prod"),
        ("virt-launcher-web", ""),
        ("virt-launcher-web-x7k2", ""),
        ("virt-launcher--x7k2p", ""),
        ("web-x7k2p", ""),
        ("", ""),
    ],
)
def test_a_launchers_name_has_its_instances(pod: str, instance: str) -> None:
    assert names.likely_instance(pod) == instance
