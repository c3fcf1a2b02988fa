"""Which interface of the pod is meant, for each way a binding is called."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.cni.request import Request
from cnvnet.cni.result import Interface, Result
from cnvnet.kernel.addresses import AddAddress
from cnvnet.kernel.routes import Route
from cnvnet.plugins.binding import pod_interface
from tests.fakes.kernel import FakeKernel

POD = "/run/netns/pod"


def a_request(ifname: str, **args: Any) -> Request:
    return Request(
        command="ADD",
        container_id="cid-1",
        netns=POD,
        ifname=ifname,
        args="",
        path="",
        env={},
        fields=Fields({"args": {"cni": args}} if args else {}),
        raw=b"",
        cni_version="1.1.0",
        name="net1",
    )


def a_result(*names: str) -> Result:
    return Result(tuple(Interface(name, sandbox=POD) for name in names))


@pytest.mark.parametrize("name", ['a"accept#', "a*"])
def test_a_name_that_nft_would_take_for_more_is_refused(name: str) -> None:
    kernel = FakeKernel()
    kernel.add_namespace(POD).add_link(name, "veth")
    with (
        kernel.netns(POD) as netns,
        kernel.stack(netns) as pod,
        pytest.raises(InvalidConfig, match="name with"),
    ):
        pod_interface.find(pod, a_request(name), None)


@pytest.mark.parametrize(
    ("links", "request_", "result", "expected"),
    [
        pytest.param(["eth0"], a_request("net1", logicNetworkName="default"), None, "eth0", id="primary"),
        pytest.param(
            ["eth0", "pod16477688c0e"],
            a_request("net2", logicNetworkName="blue"),
            None,
            "pod16477688c0e",
            id="secondary",
        ),
        pytest.param(
            ["eth0", "pod16477688c0e"],
            a_request("pod16477688c0e"),
            a_result("pod16477688c0e"),
            "pod16477688c0e",
            id="chained",
        ),
        pytest.param(["eth0"], a_request("eth0"), a_result("eth0"), "eth0", id="default network"),
        pytest.param(
            ["eth0", "net1"], a_request("net1"), a_result("net1"), "net1", id="chained, of the older scheme"
        ),
        pytest.param(["eth0", "lan0"], a_request("lan0"), None, "lan0", id="called manually"),
        pytest.param(["eth0"], a_request("net1"), None, "eth0", id="without a name"),
        pytest.param(
            ["eth0"],
            a_request("net1", logicNetworkName="default"),
            Result(),
            "eth0",
            id="behind a plugin that made nothing",
        ),
    ],
)
def test_the_pods_interface_is_found(
    links: list[str], request_: Request, result: Result | None, expected: str
) -> None:
    kernel = FakeKernel()
    pod = kernel.add_namespace(POD)
    for link in links:
        pod.add_link(link, "veth")
    with kernel.netns(POD) as netns, kernel.stack(netns) as stack:
        assert pod_interface.find(stack, request_, result).name == expected


@pytest.mark.parametrize(
    ("request_", "result", "message"),
    [
        (a_request("net1", logicNetworkName="blue"), None, "there is no pod16477688c0e nor eth0 in the pod"),
        (a_request("pod1"), a_result("pod1"), "there is no pod1 in the pod"),
        (a_request("eth0"), None, "there is no eth0 in the pod"),
    ],
    ids=["logical name", "chained", "alone"],
)
def test_what_was_looked_for_is_said(request_: Request, result: Result | None, message: str) -> None:
    kernel = FakeKernel()
    kernel.add_namespace(POD)
    with (
        kernel.netns(POD) as netns,
        kernel.stack(netns) as stack,
        pytest.raises(InvalidConfig, match=f"^{message} to bind the VM to"),
    ):
        pod_interface.find(stack, request_, result)


DEFAULT4, DEFAULT6 = (Route(ip_network(dst), 2) for dst in ("0.0.0.0/0", "::/0"))


def test_the_default_route_is_that_of_the_main_table_with_the_lowest_priority() -> None:
    routes = [
        DEFAULT6,
        DEFAULT4._replace(table=77),
        DEFAULT4._replace(priority=9),
        DEFAULT4._replace(priority=8),
        Route(ip_network("10.0.0.0/8"), 2),
    ]
    assert pod_interface.default_route(routes, 4) == DEFAULT4._replace(priority=8)
    assert pod_interface.default_route(routes[1:], 6) is None


@pytest.mark.parametrize(
    ("link_mtu", "route", "expected"),
    [
        (1500, None, 1500),
        (1500, DEFAULT4, 1500),
        (1500, DEFAULT4._replace(mtu=1450), 1450),
        (1500, DEFAULT6._replace(mtu=9000), 1500),
        (1500, DEFAULT4._replace(mtu=68), 576),
        (1500, DEFAULT6._replace(mtu=68), 1280),
        (1000, DEFAULT6._replace(mtu=68), 1000),
    ],
)
def test_the_smaller_of_interface_and_route_counts(
    link_mtu: int, route: Route | None, expected: int
) -> None:
    assert pod_interface.mtu(link_mtu, route) == expected


def test_only_addresses_that_others_can_reach_count() -> None:
    kernel = FakeKernel()
    link = kernel.host.add_link("eth0", "veth")
    texts = ["169.254.7.1/16", "10.1.0.2/24", "fe80::1/64", "fd00::2/64", "10.1.0.3/24"]
    with kernel.stack() as stack:
        stack.apply(*(AddAddress(link.ifindex, ip_interface(text)) for text in texts))
        found = pod_interface.addresses(stack, link.shown())
    assert [str(address) for address in found] == ["10.1.0.2/24", "fd00::2/64", "10.1.0.3/24"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1", True),
        ("240.0.0.1", True),
        ("2001:db8::1", True),
        ("fd00::1", True),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("127.0.0.1", False),
        ("169.254.0.1", False),
        ("224.0.0.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("ff02::1", False),
    ],
)
def test_global_unicast_is_what_it_is_in_go(address: str, expected: bool) -> None:
    assert pod_interface.is_global_unicast(ip_address(address)) is expected
