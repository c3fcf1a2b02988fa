"""One attachment's port: the veth, its end on the bridge and its end in the container."""

from __future__ import annotations

import errno
import os
from typing import Final

from cnvnet.cni.errors import INTERNAL, CNIError, InvalidConfig
from cnvnet.cni.result import Result
from cnvnet.kernel import sysctl
from cnvnet.kernel.addresses import DeleteAddress
from cnvnet.kernel.links import Link
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.kernel.wait import wait_for_addresses, wait_for_link
from cnvnet.plugins.cnv_bridge import plan
from cnvnet.plugins.cnv_bridge.bridge import free_name
from cnvnet.plugins.cnv_bridge.config import Config

# How long the reference waits: it polls a port after 0, 50, 500, 1000 and 1000 ms (bridge.go), and addresses
# for 5 s (ipam_linux.go).
_PORT_SECONDS: Final = 2.55
_ADDRESS_SECONDS: Final = 5
# Names of vishvananda/netlink, which the reference's message shows.
_OPERSTATES: Final = {"LOWERLAYERDOWN": "lower-layer-down", "NOTPRESENT": "not-present"}


def choose_names(host: Stack, ifname: str, mac: str) -> plan.PortNames:
    """Names and MACs of a port to be made; `mac` "" makes the container's a random one."""
    return plan.PortNames(
        host=free_name(host),
        host_mac=plan.host_mac(os.urandom(5)),
        container=ifname,
        container_mac=mac or plan.local_mac(os.urandom(6)),
    )


def refuse_taken_name(pod: Stack, ifname: str, host_name: str) -> None:
    """Raises the reference's error when the container has such a link already."""
    if pod.link(ifname) is not None:
        raise _taken(ifname, host_name)


def refuse_hosts_mac(host: Stack, bridge: Link, mac: str) -> None:
    """Raises InvalidConfig when the bridge or a port of it has the container's MAC address.

    The bridge would deliver to the host all frames that are sent to it.
    """
    ifindex = host.owner(bridge.ifindex, mac) if mac else 0
    owner = host.link(ifindex) if ifindex else None
    if owner is not None:
        of = f"bridge {bridge.name}" if owner.ifindex == bridge.ifindex else f"{owner.name} on {bridge.name}"
        raise InvalidConfig(f"mac {mac}: {of} has it, so that no frame would come to the container")


def create(host: Stack, config: Config, names: plan.PortNames, bridge: Link, netns: Netns) -> Link:
    """The veth, its host end on the bridge. Nothing is left of it if this raises."""
    try:
        (port,) = host.apply(plan.plan_veth(config, names, bridge, netns.fd))
    except KernelError as e:
        if e.errno == errno.EEXIST:
            raise _taken(names.container, names.host) from e
        raise
    return port


def configure(host: Stack, config: Config, bridge: Link, port: Link) -> None:
    """Flags and VLANs of the host end, which is up afterwards."""
    host.apply(*plan.plan_port(config, bridge, port.ifindex))
    sysctl.apply(host.sysctls, [plan.no_advertisements(port.name)])


def configure_container(
    pod: Stack,
    config: Config,
    names: plan.PortNames,
    ifindex: int,
    result: Result,
    *,
    is_up: bool = False,
    silent: bool = False,
) -> None:
    """Sysctls, addresses, up and routes of the container's end; for L2 it only goes up, if at all.

    `is_up`: the address manager has set it up already. `silent`: its addresses are not announced.
    """
    if config.ipam_type:
        sysctl.apply(pod.sysctls, plan.container_settings(config, names.container, result, silent=silent))
    if not config.disable_container_interface:
        announced_mac = names.container_mac if is_up and not silent else None
        pod.apply(*plan.plan_container(ifindex, result, announced_mac))


def is_up(pod: Stack, ifindex: int) -> bool:
    """Whether the container's end has been set up."""
    link = pod.link(ifindex)
    return link is not None and link.up


def take_addresses(pod: Stack, ifindex: int) -> None:
    """The container's end has no address any more, and answers for none; a link that is gone is fine."""
    for address in pod.addresses(ifindex):
        try:
            pod.apply(DeleteAddress(ifindex, address.address, address.peer))
        except KernelError as e:
            # A secondary address goes with its primary one.
            if e.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise


def wait_until_up(host: Stack, port: Link) -> Link:
    """The host end once the bridge forwards its frames."""
    settled = wait_for_link(host, port.ifindex, seconds=_PORT_SECONDS)
    if settled is None or settled.operstate != "UP":
        state = settled.operstate if settled else "NOTPRESENT"
        raise CNIError(INTERNAL, f"bridge port in error state: {_OPERSTATES.get(state, state.lower())}")
    return settled


def wait_for_dad(pod: Stack, ifname: str, ifindex: int) -> None:
    """Waits until duplicate address detection is through; an address that another host has is an error."""
    for address in wait_for_addresses(pod, ifindex, seconds=_ADDRESS_SECONDS):
        if address.dad_failed:
            state = f"link {ifname} has address {address.address.ip} in DADFAILED state"
            raise CNIError(INTERNAL, f'failed to settle addresses for "{ifname}": {state}')
        if address.tentative:
            state = f"link {ifname} still has tentative addresses after {_ADDRESS_SECONDS} seconds"
            raise CNIError(INTERNAL, f'failed to settle addresses for "{ifname}": {state}')


def _taken(ifname: str, host_name: str) -> InvalidConfig:
    return InvalidConfig(f'container veth name ("{ifname}") peer provided ("{host_name}") already exists')
