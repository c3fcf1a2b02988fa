"""One attachment's port: the veth, its end on the bridge and its end in the container."""

from __future__ import annotations

import errno
import os
from typing import Final

from cnvnet.cni.errors import INTERNAL, CNIError, InvalidConfig
from cnvnet.cni.result import Result
from cnvnet.kernel.links import DeleteLink, Link
from cnvnet.kernel.netns import Netns
from cnvnet.kernel.stack import KernelError, Stack
from cnvnet.kernel.wait import wait_for_addresses, wait_for_link
from cnvnet.plugins.cnv_bridge import plan
from cnvnet.plugins.cnv_bridge.bridge import apply_settings, free_name
from cnvnet.plugins.cnv_bridge.config import Config

# The reference looks after 0, 50, 500, 1000 and 1000 ms (bridge.go), for addresses 5 s long (ipam_linux.go).
_PORT_SECONDS: Final = 2.55
_ADDRESS_SECONDS: Final = 5
# Names of vishvananda/netlink, which the reference's message shows.
_OPERSTATES: Final = {"LOWERLAYERDOWN": "lower-layer-down", "NOTPRESENT": "not-present"}


def choose_names(host: Stack, ifname: str, mac: str) -> plan.Names:
    """Names and MACs of a port to be made; `mac` "" leaves the container's to chance."""
    return plan.Names(
        host=free_name(host),
        host_mac=plan.host_mac(os.urandom(5)),
        container=ifname,
        container_mac=mac or plan.local_mac(os.urandom(6)),
    )


def refuse_taken_name(pod: Stack, ifname: str, host_name: str) -> None:
    """Raises the reference's error when the container has such a link already."""
    if pod.link(ifname) is not None:
        raise _taken(ifname, host_name)


def create(host: Stack, config: Config, names: plan.Names, bridge: Link, netns: Netns) -> Link:
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
    apply_settings(host, [plan.Setting(f"net/ipv6/conf/{port.name}/accept_ra", "0")])


def configure_container(pod: Stack, config: Config, ifname: str, ifindex: int, result: Result) -> None:
    """Sysctls, addresses, up and routes of the container's end; for L2 it only goes up, if at all."""
    if config.ipam_type:
        apply_settings(pod, plan.container_settings(config, ifname, result))
    if not config.disable_container_interface:
        pod.apply(*plan.plan_container(ifindex, result))


def wait_until_up(host: Stack, port: Link) -> Link:
    """The host end once the bridge forwards its frames."""
    found = wait_for_link(host, port.ifindex, seconds=_PORT_SECONDS)
    if found is None or found.operstate != "UP":
        state = found.operstate if found else "NOTPRESENT"
        raise CNIError(INTERNAL, f"bridge port in error state: {_OPERSTATES.get(state, state.lower())}")
    return found


def wait_for_dad(pod: Stack, ifname: str, ifindex: int) -> None:
    """Waits until duplicate address detection is through; an address somebody else has is an error."""
    for address in wait_for_addresses(pod, ifindex, seconds=_ADDRESS_SECONDS):
        if address.dad_failed:
            state = f"link {ifname} has address {address.address.ip} in DADFAILED state"
            raise CNIError(INTERNAL, f'failed to settle addresses for "{ifname}": {state}')
        if address.tentative:
            state = f"link {ifname} still has tentative addresses after {_ADDRESS_SECONDS} seconds"
            raise CNIError(INTERNAL, f'failed to settle addresses for "{ifname}": {state}')


def delete(stack: Stack, ifindex: int) -> None:
    """Deletes a link; one that is gone is fine."""
    try:
        stack.apply(DeleteLink(ifindex))
    except KernelError as e:
        if e.errno != errno.ENODEV:
            raise


def _taken(ifname: str, host_name: str) -> InvalidConfig:
    return InvalidConfig(f'container veth name ("{ifname}") peer provided ("{host_name}") already exists')
