"""The two kernels the same assertions run on: the real one in namespaces of its own, and the fake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_interface, ip_network
from typing import NamedTuple

import pytest

from cnvnet.kernel.links import CreateBridge, CreateVeth, Link, VethPeer
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.operations import Operation
from cnvnet.kernel.stack import Kernel, KernelError, LinuxKernel, Stack
from tests.fakes.kernel import FakeKernel
from tests.harness import namespace

ADDRESS = ip_interface("10.1.0.2/24")
ADDRESS6 = ip_interface("fd00:1::2/64")
DEFAULT = ip_network("0.0.0.0/0")
DEFAULT6 = ip_network("::/0")


class World(NamedTuple):
    """A node and a pod, each with its stack."""

    kernel: Kernel
    host: Stack
    pod: Stack
    host_netns: Netns
    pod_netns: Netns

    def bridge(self, name: str = "br0", *, vlan_filtering: bool = False) -> Link:
        [made] = self.host.apply(CreateBridge(name, vlan_filtering=vlan_filtering))
        return made

    def port(self, name: str = "veth0", *, peer: str = "eth0", master: int = 0) -> Link:
        """The near end of a veth whose far end is in the pod."""
        far = VethPeer(peer, netns_fd=self.pod_netns.fd)
        [made] = self.host.apply(CreateVeth(name, far, master=master))
        return made


def seen(stack: Stack, name: str | int) -> Link:
    """A link that must be there."""
    found = stack.link(name)
    assert found is not None, f"no link {name}"
    return found


@pytest.fixture(params=["fake", "linux"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    # The kernel the functional tests usually run on knows neither bridge VLANs nor dummies.
    yield from _world(request.param, vlans=False)


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.vlan)])
def vlan_world(request: pytest.FixtureRequest) -> Iterator[World]:
    yield from _world(request.param, vlans=True)


def _world(which: str, *, vlans: bool) -> Iterator[World]:
    with ExitStack() as undo:
        kernel: Kernel
        if which == "fake":
            kernel = FakeKernel(vlans=vlans)
            paths = ["/run/netns/host", "/run/netns/pod"]
            for path in paths:
                kernel.add_namespace(path)
        else:
            kernel = LinuxKernel()
            paths = [undo.enter_context(namespace()) for _ in range(2)]
        host_netns, pod_netns = (undo.enter_context(kernel.netns(path)) for path in paths)
        host, pod = (undo.enter_context(kernel.stack(netns)) for netns in (host_netns, pod_netns))
        yield World(kernel, host, pod, host_netns, pod_netns)


def refused(stack: Stack, operation: Operation) -> KernelError:
    """The error of an operation that has to fail, which names it."""
    with pytest.raises(KernelError) as caught:
        stack.apply(operation)
    assert caught.value.operation == operation
    return caught.value
