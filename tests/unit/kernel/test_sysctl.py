"""Settings are applied whatever the kernel lacks that is not needed, and a key never leads elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cnvnet.kernel import sysctl
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.kernel.sysctl import IPV4_FORWARDING, IPV6_FORWARDING, NamespaceSysctls, Setting
from tests.fakes.kernel import FakeKernel

REDIRECTS = "net/ipv4/conf/all/send_redirects"


@pytest.fixture
def kernel() -> FakeKernel:
    kernel = FakeKernel()
    kernel.host.add_link("eth0", "veth")
    return kernel


@pytest.fixture
def stack(kernel: FakeKernel) -> Iterator[Stack]:
    with kernel.stack() as opened:
        yield opened


def test_settings_are_required_unless_they_say_otherwise(stack: Stack) -> None:
    sysctl.apply(stack.sysctls, [Setting("net/ipv4/nonsense", "1", required=False)])
    with pytest.raises(KernelError, match="nonsense"):
        sysctl.apply(stack.sysctls, [Setting("net/ipv4/nonsense", "1")])


def test_a_required_one_that_is_so_already_may_be_refused(kernel: FakeKernel, stack: Stack) -> None:
    stack.sysctls.set(REDIRECTS, "0")
    kernel.fail_at(1)
    sysctl.apply(stack.sysctls, [Setting(REDIRECTS, "0")])
    kernel.fail_at(1)
    with pytest.raises(KernelError):
        sysctl.apply(stack.sysctls, [Setting(REDIRECTS, "1")])


@pytest.mark.parametrize(
    ("all_links", "one"),
    [
        (IPV4_FORWARDING, "net/ipv4/conf/eth0/forwarding"),
        (IPV6_FORWARDING, "net/ipv6/conf/eth0/forwarding"),
    ],
)
def test_forwarding_that_is_on_keeps_its_exceptions(stack: Stack, all_links: str, one: str) -> None:
    stack.sysctls.set(all_links, "1")
    stack.sysctls.set(one, "0")
    sysctl.apply(stack.sysctls, [Setting(all_links, "1")])
    assert stack.sysctls.get(one) == "0"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "net/../../etc/passwd", "net/ipv4/conf/./x", "net//x"])
def test_a_sysctls_key_never_leads_elsewhere(key: str) -> None:
    with pytest.raises(ValueError, match="not a path below /proc/sys"):
        NamespaceSysctls().get(key)
    with pytest.raises(ValueError, match="not a path below /proc/sys"):
        NamespaceSysctls().set(key, "1")


def test_a_sysctl_this_kernel_does_not_have_has_no_value() -> None:
    assert NamespaceSysctls().get("net/ipv4/conf/no-such-link/forwarding") is None
    assert NamespaceSysctls().get("net/ipv4/ip_forward") in ("0", "1")
