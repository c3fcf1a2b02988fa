"""Sysctls are set and put back exactly, with all that they took along."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cnvnet.kernel.fake import FakeKernel
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.vm import sysctls
from cnvnet.vm.sysctls import IPV4_FORWARDING, IPV6_FORWARDING, Change, Setting

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
def test_everything_is_put_back_as_it_was(
    kernel: FakeKernel, stack: Stack, forwarding: str, heeded: str
) -> None:
    stack.sysctls.set(IPV4_FORWARDING, forwarding)
    stack.sysctls.set("net/ipv4/conf/eth1/forwarding", "1")
    stack.sysctls.set("net/ipv6/conf/eth0/forwarding", "1")
    stack.sysctls.set("net/ipv4/conf/all/accept_redirects", heeded)
    before = dict(kernel.host.sysctls)
    changed = sysctls.changes(stack, WANTED)
    sysctls.apply(stack, WANTED)
    assert all(stack.sysctls.get(setting.key) == setting.value for setting in WANTED)
    sysctls.restore(stack, changed)
    assert kernel.host.sysctls == before


def test_what_is_as_wanted_already_is_nobodys_to_put_back(stack: Stack) -> None:
    sysctls.apply(stack, WANTED)
    assert sysctls.changes(stack, WANTED) == ()


def test_the_last_who_needs_it_puts_it_back(stack: Stack) -> None:
    stack.sysctls.set(REDIRECTS, "1")
    first = sysctls.changes(stack, WANTED)
    sysctls.apply(stack, WANTED)
    second = sysctls.changes(stack, WANTED[:1], first)
    assert second == (Change(REDIRECTS, "1", "0"),)
    sysctls.restore(stack, sysctls.unshared(first, second))
    assert (stack.sysctls.get(REDIRECTS), stack.sysctls.get(IPV4_FORWARDING)) == ("0", "0")
    sysctls.restore(stack, sysctls.unshared(second, ()))
    assert stack.sysctls.get(REDIRECTS) == "1"


def test_what_somebody_has_set_since_stays(stack: Stack) -> None:
    changed = sysctls.changes(stack, WANTED)
    sysctls.apply(stack, WANTED)
    stack.sysctls.set("net/ipv4/ip_forward", "0")
    stack.sysctls.set(REDIRECTS, "1")
    sysctls.restore(stack, changed)
    assert (stack.sysctls.get(REDIRECTS), stack.sysctls.get(IPV4_FORWARDING)) == ("1", "0")
    assert stack.sysctls.get(IPV6_FORWARDING) == "0"


def test_what_is_not_required_may_be_missing(stack: Stack) -> None:
    sysctls.apply(stack, [Setting("net/ipv4/nonsense", "1", required=False)])
    assert sysctls.changes(stack, [Setting("net/ipv4/nonsense", "1")]) == ()
    sysctls.restore(stack, [Change("net/ipv4/nonsense", "0", "1")])
    with pytest.raises(KernelError, match="nonsense"):
        sysctls.apply(stack, [Setting("net/ipv4/nonsense", "1")])
