"""The same call of our program and of the reference gives the same result, node and pod."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.functional.bridge.bridge_network import LEGACY, OURS, REFERENCE, Network, host_local
from tests.functional.bridge.snapshot import Roles, differences, snapshot
from tests.harness import VERSIONS, Node, a_node

ROUTES = [
    {"dst": "198.51.100.0/24"},
    {"dst": "203.0.113.0/24", "gw": "10.1.2.9"},
    {"dst": "2001:db8:5::/48"},
]
DNS = {"nameservers": ["192.0.2.1"], "domain": "a.example", "search": ["b", "c"], "options": ["ndots:2"]}
MAC = "02:00:00:00:00:05"
V4, DUAL = ("10.1.2.0/24",), ("10.1.2.0/24", "fd00::/64")


class Case(NamedTuple):
    """A configuration; `subnets` are what host-local gives from, none for layer 2."""

    keys: dict[str, Any] = {}  # noqa: RUF012 -- never changed
    subnets: tuple[str, ...] = ()
    ipam: dict[str, Any] = {}  # noqa: RUF012 -- never changed
    args: str = ""


CASES = {
    "layer-2": Case(),
    "layer-2-all-flags": Case({"hairpinMode": True, "portIsolation": True, "mtu": 1400}, args=f"MAC={MAC}"),
    "promiscuous": Case({"promiscMode": True}),
    "link-left-down": Case({"disableContainerInterface": True}),
    "macspoofchk": Case({"macspoofchk": True}),
    "v4": Case({}, V4),
    "v6": Case({}, ("fd00::/64",)),
    "gateway": Case({"isGateway": True}, V4),
    "default-gateway": Case({"isDefaultGateway": True}, DUAL),
    "routes": Case({"isGateway": True}, DUAL, {"routes": ROUTES}),
    "dns": Case({"dns": DNS}, V4),
    "masquerade": Case({"isDefaultGateway": True, "ipMasq": True}, DUAL),
    "given-mac": Case({"isDefaultGateway": True, "args": {"cni": {"mac": MAC}}}, V4),
    "enabledad": Case({"enabledad": True}, DUAL),
    "three-subnets": Case({"isDefaultGateway": True, "mtu": 9000}, (*DUAL, "2001:db8::/64")),
}
IN_EVERY_VERSION = ["layer-2", "default-gateway", "routes", "dns"]
PARAMETERS = [
    pytest.param(version, case, id=f"{name}-{version}")
    for name, case in CASES.items()
    for version in (VERSIONS if name in IN_EVERY_VERSION else ["1.1.0"])
    if case.subnets or version not in LEGACY
]


class Difference(NamedTuple):
    """A difference that is meant: where, and why."""

    where: str
    why: str


INTENDED = [
    Difference(
        r"node\|links\|<port \d+>\|txqlen",
        "the reference leaves the node's end with a queue length of 0; but no veth has a queue",
    ),
    Difference(
        r"node\|links\|bridge0\|linkinfo\|info_data\|no_linklocal_learn",
        "with macspoofchk a bridge must not learn from frames to 01:80:c2:00:00:0X, which no filter sees",
    ),
    Difference(
        r".*\|links\|.*\|num_[rt]x_queues",
        "left to itself the kernel makes a queue for each processor and uses one, which takes longer",
    ),
    Difference(
        r"pod\|sysctls\|ipv6/conf/eth0/ndisc_notify",
        "the reference announces IPv4 addresses only: others would reach the pod after 8 to 15 s",
    ),
]


class Side(NamedTuple):
    """One of the two nodes."""

    network: Network
    node: Node


def side(node: Node, program: str, version: str, case: Case) -> Side:
    ipam = {"ipam": host_local(node, *case.subnets, **case.ipam)} if case.subnets else {}
    # With this, an address is usable at once and the snapshot does not depend on when it is taken.
    node.run("sysctl", "-qw", "net.ipv6.conf.default.dad_transmits=0")
    if not {"isGateway", "isDefaultGateway"} & case.keys.keys():
        # Without a gateway the reference's bridge takes the MAC of its first port, and ours has its own.
        node.run("ip", "link", "add", "bridge0", "address", "02:00:00:00:00:b0", "type", "bridge")
    return Side(Network(node, program, version, **case.keys, **ipam), node)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Node]:
    """The reference's node."""
    with a_node(tmp_path / "other") as made:
        made.folder.mkdir()
        yield made


def normalised(stdout: str, roles: Roles) -> str:
    """A printed result without what is random, and without the MTU, which only ours reports."""
    return roles.name(re.sub(r' *"mtu": \d+,\n', "", stdout))


@pytest.mark.parametrize(("version", "case"), PARAMETERS)
def test_ours_does_what_the_reference_does(node: Node, other: Node, version: str, case: Case) -> None:
    printed: list[str] = []
    added: list[dict[str, str]] = []
    deleted: list[dict[str, str]] = []
    for network, host in (side(other, REFERENCE, version, case), side(node, OURS, version, case)):
        pod = host.pod()
        pod.run("sysctl", "-qw", "net.ipv6.conf.default.dad_transmits=0")
        outcome = network.add(pod, args=f"IgnoreUnknown=1;{case.args}" if case.args else "")
        outcome.ok()
        roles = Roles(host, pod, network.bridge)
        printed.append(normalised(outcome.stdout, roles))
        added.append(snapshot(host, pod, roles))
        assert network.delete(pod).ok() is None
        deleted.append(snapshot(host, pod, roles))
    assert printed[1] == printed[0]
    assert unexplained(*added) == {}
    assert unexplained(*deleted) == {}


def unexplained(reference: dict[str, str], ours: dict[str, str]) -> dict[str, tuple[str, str]]:
    found = differences(reference, ours)
    return {
        path: pair
        for path, pair in found.items()
        if not any(re.fullmatch(difference.where, path) for difference in INTENDED)
    }


def test_a_snapshot_sees_everything(node: Node, tmp_path: Path) -> None:
    """The oracle itself: each of these changes has to show."""
    case = CASES["default-gateway"]
    network = side(node, OURS, "1.1.0", case).network
    pod = node.pod()
    network.add(pod).ok()
    roles = Roles(node, pod, network.bridge)
    port = next(name for name in node.links() if name.startswith("veth"))
    changes = [
        (pod, ["ip", "link", "set", "eth0", "mtu", "1300"]),
        (pod, ["ip", "addr", "add", "192.0.2.1/32", "dev", "eth0"]),
        (pod, ["ip", "route", "add", "192.0.2.64/26", "dev", "eth0", "table", "77"]),
        (pod, ["sysctl", "-qw", "net.ipv4.conf.eth0.rp_filter=2"]),
        (node, ["ip", "link", "set", port, "type", "bridge_slave", "hairpin", "on"]),
        (node, ["ip", "link", "set", "bridge0", "promisc", "on"]),
        (node, ["ip", "rule", "add", "from", "192.0.2.1", "table", "77"]),
        (node, ["sysctl", "-qw", "net.ipv4.ip_forward=0"]),
    ]
    before = snapshot(node, pod, roles)
    for sandbox, argv in changes:
        sandbox.run(*argv)
        after = snapshot(node, pod, roles)
        assert differences(before, after) != {}, argv
        before = after
