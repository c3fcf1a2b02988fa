"""What the fake has beyond the real kernel: faults on demand, a list of what was done, namespaces that go.

That it behaves like the real one is what tests/functional/kernel/test_stack.py asserts.
"""

from __future__ import annotations

import errno
from ipaddress import ip_interface

import pytest

from cnvnet.kernel.addresses import AddAddress
from cnvnet.kernel.links import CreateBridge, CreateVeth, VethPeer
from cnvnet.kernel.netns import NotANamespace
from cnvnet.kernel.nft.tables import Element, NftError
from cnvnet.kernel.stack import KernelError
from tests.fakes.kernel import HOST, FakeKernel

GUARD = Element("bridge", "cnv_bridge", "guarded", ("ifname",), ("veth0",))


def test_the_step_asked_for_fails_once_and_changes_nothing() -> None:
    kernel = FakeKernel()
    kernel.fail_at(2, errno.ENOMEM)
    operations = [CreateBridge("br0"), CreateBridge("br1"), CreateBridge("br2")]
    with kernel.stack() as stack:
        with pytest.raises(KernelError) as caught:
            stack.apply(*operations)
        assert (caught.value.errno, caught.value.operation) == (errno.ENOMEM, operations[1])
        assert str(caught.value) == "create bridge br1: cannot allocate memory"
        assert [link.name for link in stack.links()] == ["lo", "br0"]
        stack.apply(*operations[1:])
    assert kernel.done == [*operations]


def test_sysctls_and_nftables_are_steps_too() -> None:
    kernel = FakeKernel()
    with kernel.stack() as stack, kernel.nft() as nft:
        kernel.fail_at(1)
        with pytest.raises(KernelError, match="ip_forward=1: input/output error"):
            stack.sysctls.set("net/ipv4/ip_forward", "1")
        assert stack.sysctls.get("net/ipv4/ip_forward") == "0"
        kernel.fail_at(1)
        with pytest.raises(NftError):
            nft.change(add=[GUARD])
    assert kernel.steps == 2


def test_steps_count_across_namespaces() -> None:
    kernel = FakeKernel()
    kernel.add_namespace("/run/netns/pod")
    kernel.fail_at(2)
    with kernel.netns("/run/netns/pod") as pod, kernel.stack() as host, kernel.stack(pod) as inside:
        host.apply(CreateVeth("veth0", VethPeer("eth0", netns_fd=pod.fd)))
        eth0 = inside.link("eth0")
        assert eth0 is not None
        with pytest.raises(KernelError, match="on eth0: input/output error"):
            inside.apply(AddAddress(eth0.ifindex, ip_interface("10.0.0.1/24")))


def test_a_namespace_that_goes_takes_its_veths_along() -> None:
    kernel = FakeKernel()
    kernel.add_namespace("/run/netns/pod")
    with kernel.stack() as host:
        with kernel.netns("/run/netns/pod") as pod:
            host.apply(CreateVeth("veth0", VethPeer("eth0", netns_fd=pod.fd)), CreateBridge("br0"))
        kernel.remove_namespace("/run/netns/pod")
        assert [link.name for link in host.links()] == ["lo", "br0"]
    with pytest.raises(FileNotFoundError), kernel.netns("/run/netns/pod"):
        pass


def test_paths_are_namespaces_files_or_nothing() -> None:
    kernel = FakeKernel()
    kernel.add_file("/run/netns/file")
    with kernel.netns(HOST) as host:
        assert host.inode == kernel.own()
    with pytest.raises(NotANamespace, match="/run/netns/file"), kernel.netns("/run/netns/file"):
        pass


def test_each_namespace_has_its_nftables() -> None:
    kernel = FakeKernel()
    pod = kernel.add_namespace("/run/netns/pod")
    assert kernel.nft_of(pod) is kernel.nft_of(pod)
    assert kernel.nft_of(pod) is not kernel.nft_of(kernel.host)
