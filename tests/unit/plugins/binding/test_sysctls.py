"""Sysctls are set and restored exactly, with all that they took along."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cnvnet.kernel import sysctl
from cnvnet.kernel.stack import Stack
from cnvnet.kernel.sysctl import IPV4_FORWARDING, IPV6_FORWARDING, Setting
from cnvnet.plugins.binding import sysctls
from cnvnet.plugins.binding.sysctls import Change
from tests.fakes.kernel import FakeKernel

REDIRECTS = "net/ipv4/conf/all/send_redirects"
WANTED = (Setting(REDIRECTS, "0"), Setting(IPV4_FORWARDING, "1"), Setting(IPV6_FORWARDING, "1"))


@pytest.fixture
def kernel() -> FakeKernel:
    kernel = FakeKernel()
    kernel.host.add_link("eth0", "veth")
    kernel.host.add_link("eth1", "veth")
    return kernel


@pytest.fixture
def stack(kernel: FakeKernel) -> Iterator[Stack]:
    with kernel.stack() as opened:
        yield opened


@pytest.mark.parametrize("forwarding", ["0", "1"])
@pytest.mark.parametrize("heeded", ["0", "1"])
def test_everything_is_restored_as_it_was(
    kernel: FakeKernel, stack: Stack, forwarding: str, heeded: str
) -> None:
    stack.sysctls.set(IPV4_FORWARDING, forwarding)
    stack.sysctls.set("net/ipv4/conf/eth1/forwarding", "1")
    stack.sysctls.set("net/ipv6/conf/eth0/forwarding", "1")
    stack.sysctls.set("net/ipv4/conf/all/accept_redirects", heeded)
    before = dict(kernel.host.sysctls)
    changed = sysctls.changes(stack, WANTED)
    sysctl.apply(stack.sysctls, WANTED)
    assert all(stack.sysctls.get(setting.key) == setting.value for setting in WANTED)
    sysctls.restore(stack, changed)
    assert kernel.host.sysctls == before


def test_a_value_that_is_as_wanted_already_is_not_to_be_restored(stack: Stack) -> None:
    sysctl.apply(stack.sysctls, WANTED)
    assert sysctls.changes(stack, WANTED) == ()


def test_the_last_attachment_that_needs_a_value_restores_it(stack: Stack) -> None:
    stack.sysctls.set(REDIRECTS, "1")
    first = sysctls.changes(stack, WANTED)
    sysctl.apply(stack.sysctls, WANTED)
    second = sysctls.changes(stack, WANTED[:1], first)
    assert second == (Change(REDIRECTS, "1", "0"),)
    sysctls.restore(stack, sysctls.unshared(first, second))
    assert (stack.sysctls.get(REDIRECTS), stack.sysctls.get(IPV4_FORWARDING)) == ("0", "0")
    sysctls.restore(stack, sysctls.unshared(second, ()))
    assert stack.sysctls.get(REDIRECTS) == "1"


def test_a_value_that_was_set_since_stays(stack: Stack) -> None:
    changed = sysctls.changes(stack, WANTED)
    sysctl.apply(stack.sysctls, WANTED)
    stack.sysctls.set("net/ipv4/ip_forward", "0")
    stack.sysctls.set(REDIRECTS, "1")
    sysctls.restore(stack, changed)
    assert (stack.sysctls.get(REDIRECTS), stack.sysctls.get(IPV4_FORWARDING)) == ("1", "0")
    assert stack.sysctls.get(IPV6_FORWARDING) == "0"


def test_what_the_kernel_lacks_changes_nothing(stack: Stack) -> None:
    assert sysctls.changes(stack, [Setting("net/ipv4/nonsense", "1")]) == ()
    sysctls.restore(stack, [Change("net/ipv4/nonsense", "0", "1")])
