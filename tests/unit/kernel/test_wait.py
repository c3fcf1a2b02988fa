"""Waiting on the fake, whose naps take no time."""

from __future__ import annotations

from ipaddress import ip_interface

from cnvnet.kernel.addresses import AddAddress
from cnvnet.kernel.links import CreateVeth, VethPeer
from cnvnet.kernel.wait import wait_for_addresses, wait_for_link
from tests.fakes.kernel import FakeKernel

ADDRESS = ip_interface("fd00::2/64")


def test_a_link_that_stays_down_is_given_back_when_the_time_is_over() -> None:
    with FakeKernel().stack() as stack:
        [port] = stack.apply(CreateVeth("veth0", VethPeer("eth0")))
        found = wait_for_link(stack, port.ifindex, seconds=3600)
    assert found is not None
    assert found.operstate == "LOWERLAYERDOWN"


def test_addresses_are_given_back_when_they_have_settled() -> None:
    with FakeKernel().stack() as stack:
        [port] = stack.apply(CreateVeth("veth0", VethPeer("eth0")))
        stack.apply(AddAddress(port.ifindex, ADDRESS))
        assert [one.tentative for one in stack.addresses(port.ifindex)] == [True]
        assert [one.tentative for one in wait_for_addresses(stack, port.ifindex, seconds=3600)] == [False]


def test_an_address_of_another_host_is_not_waited_for() -> None:
    kernel = FakeKernel()
    with kernel.stack() as stack:
        [port] = stack.apply(CreateVeth("veth0", VethPeer("eth0")))
        stack.apply(AddAddress(port.ifindex, ADDRESS))
        kernel.host.addresses = [one._replace(dad_failed=True) for one in kernel.host.addresses]
        [found] = wait_for_addresses(stack, port.ifindex, seconds=3600)
    assert (found.tentative, found.dad_failed) == (True, True)


def test_no_time_means_one_look() -> None:
    with FakeKernel().stack() as stack:
        [port] = stack.apply(CreateVeth("veth0", VethPeer("eth0")))
        stack.apply(AddAddress(port.ifindex, ADDRESS))
        assert [one.tentative for one in wait_for_addresses(stack, port.ifindex, seconds=0)] == [True]
