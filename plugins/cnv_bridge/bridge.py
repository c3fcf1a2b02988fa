"""What all ports of a bridge share: the bridge, its gateway addresses, forwarding. Ensured, never undone."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from cnvnet.attachment.record import Attachments
from cnvnet.call_context import log
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.cni.fields import InterfaceAddress
from cnvnet.kernel import sysctl
from cnvnet.kernel.links import ChangeLink, CreateVeth, Link, VethPeer
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.plugins.cnv_bridge import plan
from cnvnet.plugins.cnv_bridge.config import Config


def ensure_bridge(host: Stack, attachments: Attachments, config: Config) -> Link:
    """The bridge, up and as the configuration needs it; InvalidConfig when the one there cannot serve."""
    bridge = host.link(config.bridge)
    if bridge is None or plan.plan_bridge(config, bridge, ""):
        with attachments.shared(f"bridge-{config.bridge}"):
            bridge = _make_or_adjust(host, config)
    # The bridge's routes are ours to make, as in the reference.
    sysctl.apply(host.sysctls, [plan.no_advertisements(bridge.name)])
    return bridge


@contextmanager
def still_there(host: Stack, bridge: Link) -> Generator[None]:
    """What fails inside because another program has deleted the bridge raises CNIError 11.

    The kernel's own words for it differ by operation: EINVAL, ENODEV, ENOENT of a sysctl.
    """
    try:
        yield
    except OSError as e:
        if host.link(bridge.ifindex) is not None:
            raise
        raise deleted(bridge.name) from e


def deleted(name: str) -> CNIError:
    """The error of an ADD whose bridge, or gateway link, another program has deleted while it ran."""
    return CNIError(TRY_AGAIN_LATER, f"bridge {name} has been deleted meanwhile")


def ensure_gateway(
    host: Stack,
    attachments: Attachments,
    config: Config,
    bridge: Link,
    wanted: Sequence[InterfaceAddress],
) -> Link:
    """The link with the gateway addresses: the bridge, or for a VLAN the outer end of a veth into it."""
    link = bridge
    if config.vlan or not plan.is_gateway(bridge, host.addresses(bridge.ifindex), wanted):
        with attachments.shared(f"bridge-{config.bridge}"):
            link = _ensure_vlan_link(host, config, bridge) if config.vlan else bridge
            present = host.addresses(link.ifindex)
            host.apply(*plan.plan_gateway(config, link, present, wanted, plan.local_mac(os.urandom(6))))
    sysctl.apply(host.sysctls, plan.forwarding(wanted))
    return link


def report_mtu(config: Config, before: Link, after: Link) -> None:
    """Logs where the port's MTU does not fit the bridge's; the reference does the same without a word.

    A bridge whose MTU was never set takes the smallest MTU of its ports; no line is logged when that is the
    configuration's.
    """
    if config.mtu > after.mtu:
        log(f"mtu {config.mtu}: bridge {after.name} keeps {after.mtu}, larger frames reach its ports only")
    if after.mtu < before.mtu and config.mtu != after.mtu:
        remedy = f'"mtu": {before.mtu}, or ip link set {after.name} mtu {before.mtu}'
        log(f"bridge {after.name} has come down from mtu {before.mtu} to {after.mtu} ({remedy})")


def _make_or_adjust(host: Stack, config: Config) -> Link:
    bridge = host.link(config.bridge)
    if bridge is None:
        try:
            (bridge,) = host.apply(*plan.plan_bridge(config, None, plan.local_mac(os.urandom(6))))
        except KernelError as e:
            if e.errno == errno.EOPNOTSUPP and config.filters_vlans:
                raise plan.no_vlan_filtering(config) from e
            # Other programs make bridges too and do not know our lock.
            bridge = host.link(config.bridge) if e.errno == errno.EEXIST else None
            if bridge is None and e.errno in (errno.EEXIST, errno.ENODEV):
                raise deleted(config.bridge) from e  # between its creation and this look
            if bridge is None:
                raise
    with still_there(host, bridge):
        host.apply(*plan.plan_bridge(config, bridge, ""))
    return bridge


def _ensure_vlan_link(host: Stack, config: Config, bridge: Link) -> Link:
    """`<bridge>.<vlan>`, whose other end is a port of the bridge in that VLAN; repaired if half made."""
    name = config.gateway_link
    link = host.link(name)
    if link is None:
        # The peer gets the lower ifindex, and as with the reference the port is the link before the gateway.
        peer = VethPeer(free_name(host), mac=plan.host_mac(os.urandom(5)), mtu=bridge.mtu)
        gateway = CreateVeth(name, peer, mac=plan.local_mac(os.urandom(6)), mtu=bridge.mtu, up=False)
        (link,) = host.apply(gateway)
    port = host.link(link.peer) if link.kind == "veth" and link.peer else None
    if port is None:
        raise plan.not_a_vlan_link(name)
    if not (link.up and port.up and port.master == bridge.ifindex):
        untagged = config._replace(trunk=None, hairpin_mode=False, port_isolation=False)
        host.apply(
            ChangeLink(port.ifindex, master=bridge.ifindex),
            *plan.plan_vlans(untagged, bridge, port.ifindex),
            ChangeLink(port.ifindex, up=True),
            ChangeLink(link.ifindex, up=True),
        )
        sysctl.apply(host.sysctls, [plan.no_advertisements(port.name)])
    return link


def free_name(host: Stack) -> str:
    """A name for a port that no link of the host has."""
    name = plan.host_name(os.urandom(4))
    while host.link(name) is not None:
        name = plan.host_name(os.urandom(4))
    return name
