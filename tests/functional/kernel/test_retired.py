"""Deferred deletion: what is retired is out of the way at once, and gone soon."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from ipaddress import ip_interface

import pytest

from cnvnet.kernel import netns
from cnvnet.kernel.addresses import AddAddress
from cnvnet.kernel.deferred.resident import ResidentKernel
from cnvnet.kernel.deferred.retired import retire, sweep
from cnvnet.kernel.links import RETIRED_GROUP, ChangeLink, CreateVeth, Link, VethPeer
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.nft.tables import Element
from cnvnet.kernel.routes import AddRoute, Route
from cnvnet.kernel.stack import KernelError, LinuxKernel, Stack
from tests.functional.kernel.conftest import World, seen
from tests.harness import namespace

NETWORK = ip_interface("10.1.0.0/24").network
TABLE = """\
table bridge retired {
	set ports { type ifname; }
	chain retired_v1 {
		type filter hook prerouting priority 0; policy accept;
		iifname @ports drop
	}
}
"""


def a_port_with_everything(world: World) -> Link:
    """A bridge's port whose other end has addresses of both families, and a route."""
    port = world.port(master=world.bridge().ifindex)
    eth0 = port.peer
    world.pod.sysctls.set("net/ipv6/conf/eth0/keep_addr_on_down", "1")
    world.pod.apply(
        AddAddress(eth0, ip_interface("10.1.0.2/24")),
        AddAddress(eth0, ip_interface("10.1.0.3/24")),
        AddAddress(eth0, ip_interface("fd00:1::2/64"), nodad=True),
        ChangeLink(eth0, up=True),
        AddRoute(Route(NETWORK, eth0, priority=77)),
    )
    return port


def names(stack: Stack) -> list[str]:
    return [link.name for link in stack.links()]


def eventually(satisfied: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not satisfied():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_a_retired_veth_is_out_of_the_way_of_others(world: World) -> None:
    port = a_port_with_everything(world)
    assert retire(world.host, port, world.pod, "eth0")
    assert names(world.host) == ["lo", "br0"]
    assert names(world.pod) == ["lo"]
    assert world.pod.link("eth0") is None
    assert world.pod.addresses(port.peer) == []
    assert world.pod.routes(port.peer) == []
    for stack, ifindex in ((world.host, port.ifindex), (world.pod, port.peer)):
        left = seen(stack, ifindex)
        assert (left.up, left.master, left.group) == (False, 0, RETIRED_GROUP)


def test_another_port_takes_name_and_addresses_over_at_once(world: World) -> None:
    port = a_port_with_everything(world)
    assert retire(world.host, port, world.pod, "eth0")
    again = world.port("veth1", master=seen(world.host, "br0").ifindex)
    world.pod.apply(AddAddress(again.peer, ip_interface("10.1.0.2/24")), ChangeLink(again.peer, up=True))
    sweep(world.host)
    assert names(world.host) == ["lo", "br0", "veth1"]
    assert names(world.pod) == ["lo", "eth0"]
    assert (seen(world.pod, "eth0").operstate, again.ifindex) == ("UP", seen(world.host, "veth1").ifindex)


def test_a_sweep_deletes_what_is_retired_and_nothing_else(world: World) -> None:
    bridge = world.bridge()
    ports = [world.port(f"veth{i}", peer=f"eth{i}", master=bridge.ifindex) for i in range(3)]
    for number, port in enumerate(ports[:2]):
        assert retire(world.host, port, world.pod, f"eth{number}")
    sweep(world.host)
    assert [world.host.link(port.ifindex) is None for port in ports] == [True, True, False]
    assert [world.pod.link(port.peer) is None for port in ports] == [True, True, False]
    sweep(world.host)
    assert names(world.pod) == ["lo", "eth2"]


def test_what_is_not_the_other_end_is_left_alone(world: World) -> None:
    port = world.port()
    world.pod.apply(ChangeLink(port.peer, name="moved"))
    other = world.port("veth1", peer="eth0")
    assert not retire(world.host, port, world.pod, "eth0")
    assert not retire(world.host, port, world.pod, "eth9")
    assert names(world.host) == ["lo", "veth0", "veth1"]
    assert names(world.pod) == ["lo", "moved", "eth0"]
    assert seen(world.pod, other.peer).group == 0


def test_a_step_that_the_kernel_refuses_means_delete_it_at_once(world: World) -> None:
    port = world.port()
    # A foreign link has the name that the far end would get.
    world.pod.apply(CreateVeth(f"cnvx{port.peer:x}", VethPeer("peer")))
    assert not retire(world.host, port, world.pod, "eth0")
    assert seen(world.host, "veth0").group == 0


# A process that stays, on the real kernel.


@contextmanager
def a_process_on(host: Netns, report: Callable[[str], None] = pytest.fail) -> Generator[ResidentKernel]:
    """Threads begin in the namespace of the one that starts them, as an agent's do."""
    with netns.entered(host):
        kernel = ResidentKernel(report)
    try:
        yield kernel
    finally:
        kernel.close()


@pytest.fixture
def real() -> Iterator[World]:
    kernel = LinuxKernel()
    with (
        namespace() as host_path,
        namespace() as pod_path,
        kernel.netns(host_path) as host,
        kernel.netns(pod_path) as pod,
        kernel.stack(host) as host_stack,
        kernel.stack(pod) as pod_stack,
    ):
        yield World(kernel, host_stack, pod_stack, host, pod)


def test_what_is_retired_is_soon_deleted(real: World) -> None:
    with a_process_on(real.host_netns) as kernel:
        assert kernel.reaper is not None
        ports = [a_port_with_everything(real)]
        assert retire(real.host, ports[0], real.pod, "eth0")
        kernel.reaper.notify()
        eventually(lambda: real.host.link(ports[0].ifindex) is None)
        for number in range(3):
            ports.append(real.port(f"again{number}"))
            assert retire(real.host, ports[-1], real.pod, "eth0")
            kernel.reaper.notify()
        eventually(lambda: not any(real.host.link(port.ifindex) for port in ports))
    assert not any(real.pod.link(port.peer) for port in ports)


def test_what_a_killed_process_has_left_goes_when_the_next_one_starts(real: World) -> None:
    port = a_port_with_everything(real)
    assert retire(real.host, port, real.pod, "eth0")
    with a_process_on(real.host_netns):
        eventually(lambda: real.host.link(port.ifindex) is None)
    assert names(real.pod) == ["lo"]


def test_a_process_that_ends_leaves_nothing_retired(real: World) -> None:
    with a_process_on(real.host_netns):
        port = a_port_with_everything(real)
        assert retire(real.host, port, real.pod, "eth0")
    assert real.host.link(port.ifindex) is None


def test_threads_keep_their_nftables_connections_apart(real: World) -> None:
    def element(name: str) -> Element:
        return Element("bridge", "retired", "ports", ("ifname",), (name,))

    missing: list[Element] = []

    def work(kernel: ResidentKernel, thread: int) -> None:
        with netns.entered(real.host_netns):
            for number in range(100):
                added, gone = element(f"v{thread}-{number}"), element(f"v{thread}-{number - 1}")
                with kernel.nft() as nft:
                    nft.change(add=[added], delete=[gone])
                    missing.extend(nft.missing([added]))

    with a_process_on(real.host_netns) as kernel:
        with netns.entered(real.host_netns), kernel.nft() as nft:
            nft.run(TABLE)
        threads = [threading.Thread(target=work, args=(kernel, number)) for number in range(16)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        with real.kernel.nft(real.host_netns) as nft:
            last = [element(f"v{thread}-99") for thread in range(16)]
            assert (missing, nft.missing(last)) == ([], [])
            assert nft.missing([element("v0-98")]) == [element("v0-98")]


def test_a_refused_transaction_costs_the_connection_and_not_the_next_one(real: World) -> None:
    wrong = Element("bridge", "absent", "ports", ("ifname",), ("veth0",))
    with a_process_on(real.host_netns) as kernel, netns.entered(real.host_netns):
        with pytest.raises(OSError, match="not loaded") as caught, kernel.nft() as nft:
            nft.change(add=[wrong])
        assert caught.value.errno == errno.ENOENT
        with kernel.nft() as nft:
            nft.run(TABLE)
            nft.change(add=[wrong._replace(table="retired")])
            assert nft.missing([wrong._replace(table="retired")]) == []


def test_a_thread_in_another_namespace_is_refused(real: World) -> None:
    with (
        a_process_on(real.host_netns) as kernel,
        netns.entered(real.pod_netns),
        pytest.raises(RuntimeError, match="its own network namespace"),
        kernel.nft(),
    ):
        pass


@pytest.mark.parametrize("refusal", [KernelError(errno.ENOBUFS, "no memory"), ValueError("a defect")])
def test_links_that_cannot_be_swept_are_reported_and_tried_again(
    real: World, refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [refusal, refusal]
    reports: list[str] = []
    problems: list[list[str]] = []

    def sometimes(stack: Stack) -> None:
        problems.append(kernel.problems() if len(refusals) < 2 else [])
        if refusals:
            raise refusals.pop()
        sweep(stack)

    monkeypatch.setattr("cnvnet.kernel.deferred.reaper.sweep", sometimes)
    port = a_port_with_everything(real)
    assert retire(real.host, port, real.pod, "eth0")
    with a_process_on(real.host_netns, reports.append) as kernel:
        eventually(lambda: real.host.link(port.ifindex) is None)
        eventually(lambda: kernel.problems() == [])
    report = [f"retired links cannot be deleted: {refusal}"]
    assert (reports, problems[:3]) == (report, [[], report, report])
