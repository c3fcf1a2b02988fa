"""A network namespace in memory: what the kernel does to links, addresses and routes, with its errnos.

It is as exact as tests/functional/kernel/test_stack.py, which holds it against the real thing, and knows no
timing: a link's operstate follows at once. Only duplicate address detection takes until a caller waits.
"""

from __future__ import annotations

import errno
import itertools
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Final

from cnvnet.kernel.addresses import AddAddress, Address, DeleteAddress, scope_of
from cnvnet.kernel.links import Bridge, BridgePort, ChangeLink
from cnvnet.kernel.neighbours import Neighbour
from cnvnet.kernel.routes import MAIN_TABLE, AddRoute, Route
from cnvnet.kernel.rtnetlink import PROTOCOL_BOOT, PROTOCOL_KERNEL, PROTOCOL_RA, SCOPE_LINK
from cnvnet.kernel.vlans import AddVlans, DeleteVlans, VlanRange
from tests.fakes.link import NO_MAC, FakeLink, follow_ports, refuse, set_port_flags

_SYSCTLS: Final = {
    "net/ipv4/ip_forward": "0",
    "net/ipv6/conf/all/forwarding": "0",
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/bridge/bridge-nf-call-ip6tables": "1",
    "net/ipv4/conf/all/accept_redirects": "1",
    "net/ipv4/conf/all/send_redirects": "1",
    "net/ipv4/conf/default/forwarding": "0",
    "net/ipv6/conf/default/forwarding": "0",
    "net/ipv4/conf/all/arp_ignore": "0",
    "net/ipv4/conf/all/rp_filter": "0",
}
_FORWARDING: Final = {"net/ipv4/ip_forward": "ipv4", "net/ipv6/conf/all/forwarding": "ipv6"}
_SYSCTLS_OF_A_LINK: Final = {
    "net/ipv4/conf/{}/accept_redirects": "1",
    "net/ipv4/conf/{}/arp_announce": "0",
    "net/ipv4/conf/{}/arp_ignore": "0",
    "net/ipv4/conf/{}/arp_notify": "0",
    "net/ipv4/conf/{}/forwarding": "0",
    "net/ipv4/conf/{}/proxy_arp": "0",
    "net/ipv4/conf/{}/route_localnet": "0",
    "net/ipv4/conf/{}/rp_filter": "0",
    "net/ipv4/conf/{}/send_redirects": "1",
    "net/ipv6/conf/{}/accept_dad": "1",
    "net/ipv6/conf/{}/accept_ra": "1",
    "net/ipv6/conf/{}/accept_redirects": "1",
    "net/ipv6/conf/{}/addr_gen_mode": "0",
    "net/ipv6/conf/{}/autoconf": "1",
    "net/ipv6/conf/{}/dad_transmits": "1",
    "net/ipv6/conf/{}/disable_ipv6": "0",
    "net/ipv6/conf/{}/enhanced_dad": "1",
    "net/ipv6/conf/{}/forwarding": "0",
    "net/ipv6/conf/{}/keep_addr_on_down": "0",
    "net/ipv6/conf/{}/ndisc_notify": "0",
    "net/ipv6/conf/{}/proxy_ndp": "0",
}


class FakeNamespace:
    """One namespace.

    Tests may look at `links` (by ifindex), `addresses`, `routes`, `neighbours`, `sysctls`.
    """

    def __init__(self, path: str, inode: int, *, vlans: bool = True, dummies: bool = True) -> None:
        self.path = path
        self.inode = inode
        self.links: dict[int, FakeLink] = {}
        self.addresses: list[Address] = []
        self.routes: list[Route] = []
        self.neighbours: list[Neighbour] = []
        # The hosts that answer on each link: what a resolution finds.
        self.reachable: list[Neighbour] = []
        self.sysctls = dict(_SYSCTLS)
        self._knows_vlans = vlans
        self._knows_dummies = dummies
        self._ifindexes = itertools.count(1)
        loopback = self.add_link("lo", "")
        loopback.mac, loopback.mtu, loopback.up = NO_MAC, 65536, True

    # links

    def by_name(self, name: str) -> FakeLink | None:
        return next((link for link in self.links.values() if link.name == name), None)

    def by_index(self, ifindex: int) -> FakeLink:
        return self.links.get(ifindex) or refuse(errno.ENODEV)

    def add_link(self, name: str, kind: str, *, mac: str = "", mtu: int = 0) -> FakeLink:
        self.require_free(name)
        if kind == "dummy" and not self._knows_dummies:
            refuse(errno.EOPNOTSUPP)
        link = FakeLink(self, next(self._ifindexes), name, kind)
        self.links[link.ifindex] = link
        if mac:
            link.mac, link.mac_is_pinned = mac.lower(), True
        link.mtu = mtu or link.mtu
        for key, value in _SYSCTLS_OF_A_LINK.items():
            self.sysctls[key.format(name)] = value
        return link

    def add_bridge(self, name: str, *, mac: str, mtu: int, vlan_filtering: bool) -> FakeLink:
        if vlan_filtering and not self._knows_vlans:
            refuse(errno.EOPNOTSUPP)
        link = self.add_link(name, "bridge", mac=mac, mtu=mtu)
        link.bridge = Bridge(vlan_filtering, 1 if self._knows_vlans else 0)
        self._give_default_vlan(link, link.bridge)
        return link

    def require_free(self, name: str) -> None:
        """Refuses a name that another link has, or none can have."""
        if not 0 < len(name.encode()) < 16:
            refuse(errno.ERANGE if name else errno.EINVAL)
        if name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
            refuse(errno.EINVAL)
        if self.by_name(name) is not None:
            refuse(errno.EEXIST)

    def change(self, wanted: ChangeLink) -> None:
        """As the kernel orders it: down, MAC, MTU, group, name, alias, master, up.

        The port's flags come last.
        """
        link = self.by_index(wanted.ifindex)
        if wanted.up is False:
            link.namespace.set_down(link)
        if wanted.mac:
            link.mac, link.mac_is_pinned = wanted.mac.lower(), True
        if wanted.mtu and wanted.mtu != link.mtu:
            link.mtu, link.mtu_is_pinned = wanted.mtu, True
        if wanted.group is not None:
            link.group = wanted.group
        if wanted.name is not None and wanted.name != link.name:
            link.namespace.rename(link, wanted.name)
        if wanted.alias is not None:
            link.alias = wanted.alias
        if wanted.master is not None:
            link.namespace.set_master(link, wanted.master)
        if wanted.promisc is not None:
            link.promisc = wanted.promisc
        if wanted.allmulti is not None:
            link.allmulti = wanted.allmulti
        if wanted.txqlen is not None:
            link.txqlen = wanted.txqlen
        if wanted.up:
            link.namespace.set_up(link)
        set_port_flags(link, wanted)
        if wanted.linklocal_learning is not None:
            if link.bridge is None:
                refuse(errno.EOPNOTSUPP)
            link.bridge = link.bridge._replace(linklocal_learning=wanted.linklocal_learning)
        if link.master is not None:
            follow_ports(link.master)

    def delete(self, ifindex: int) -> None:
        link = self.by_index(ifindex)
        if link.kind == "":
            refuse(errno.EOPNOTSUPP)
        for gone in [link, *([link.peer] if link.peer else [])]:
            gone.namespace.unlist(gone)

    def delete_group(self, group: int) -> None:
        if group == 0:
            refuse(errno.EPERM)
        members = [link.ifindex for link in self.links.values() if link.group == group]
        if not members:
            refuse(errno.ENODEV)
        for ifindex in members:
            if ifindex in self.links:  # else it went with its peer
                self.delete(ifindex)

    def unlist(self, link: FakeLink) -> None:
        """Takes the link out of the namespace with everything that hangs on it."""
        for port in link.ports:
            self.set_master(port, 0)
        if link.master is not None:
            self.set_master(link, 0)
        link.up = False
        del self.links[link.ifindex]
        self.addresses = [a for a in self.addresses if a.ifindex != link.ifindex]
        self.routes = [r for r in self.routes if r.ifindex != link.ifindex]
        self.neighbours = [n for n in self.neighbours if n.ifindex != link.ifindex]
        for key in _SYSCTLS_OF_A_LINK:
            self.sysctls.pop(key.format(link.name), None)

    def rename(self, link: FakeLink, name: str) -> None:
        self.require_free(name)
        for key in _SYSCTLS_OF_A_LINK:
            self.sysctls[key.format(name)] = self.sysctls.pop(key.format(link.name))
        link.name = name

    def set_up(self, link: FakeLink) -> None:
        if link.up:
            return
        link.up = True
        for address in self.addresses:
            if address.ifindex == link.ifindex:
                self._add_connected(address)

    def set_down(self, link: FakeLink) -> None:
        link.up = False
        self.routes = [r for r in self.routes if r.ifindex != link.ifindex]
        self.neighbours = [n for n in self.neighbours if n.ifindex != link.ifindex]
        if self.sysctls.get(f"net/ipv6/conf/{link.name}/keep_addr_on_down") != "1":
            self.addresses = [
                a
                for a in self.addresses
                if a.ifindex != link.ifindex or isinstance(a.address, IPv4Interface)
            ]

    def set_master(self, link: FakeLink, ifindex: int) -> None:
        bridge = self.links.get(ifindex) if ifindex else None
        if link.master is not None and link.master is not bridge:
            left, link.master, link.port = link.master, None, None
            link.vlans.clear()
            follow_ports(left)
        if not ifindex or link.master is bridge is not None:
            return
        if bridge is None:
            refuse(errno.EINVAL)
        if bridge.bridge is None:
            refuse(errno.EOPNOTSUPP)
        if link.kind == "bridge":
            refuse(errno.ELOOP)
        if link.kind == "":
            refuse(errno.EINVAL)
        link.master = bridge
        link.port = BridgePort(hairpin=False, isolated=False, learning=True)
        self._give_default_vlan(link, bridge.bridge)
        follow_ports(bridge)

    def _give_default_vlan(self, link: FakeLink, bridge: Bridge) -> None:
        if bridge.default_pvid:
            pvid = bridge.default_pvid
            link.vlans[pvid] = VlanRange(pvid, pvid, pvid=True, untagged=True)

    # addresses

    def add_address(self, wanted: AddAddress) -> None:
        link = self.by_index(wanted.ifindex)
        if wanted.address.version == 6 and self.sysctls[f"net/ipv6/conf/{link.name}/disable_ipv6"] == "1":
            refuse(errno.EACCES)
        if self._address(wanted.ifindex, wanted) is not None:
            refuse(errno.EEXIST)
        checked = self.sysctls[f"net/ipv6/conf/{link.name}/accept_dad"] != "0" and link.kind != ""
        address = Address(
            ifindex=wanted.ifindex,
            address=wanted.address,
            scope=scope_of(wanted.address),
            tentative=wanted.address.version == 6 and checked and not wanted.nodad,
            broadcast=_broadcast(wanted.address),
        )
        self.addresses.append(address)
        if link.up:
            self._add_connected(address)

    def restore_address(self, was: Address) -> None:
        wanted = AddAddress(was.ifindex, was.address, nodad=True)
        self.add_address(wanted)
        self.addresses[-1] = was._replace(tentative=False, dad_failed=False, permanent=True)

    def delete_address(self, wanted: DeleteAddress) -> None:
        self.by_index(wanted.ifindex)
        found = self._address(wanted.ifindex, wanted)
        if found is None:
            refuse(errno.EADDRNOTAVAIL)
        self.addresses.remove(found)
        connected = self._connected(found)
        if not any(self._connected(a) == connected for a in self.addresses):
            self.routes = [r for r in self.routes if r != connected]

    def finish_detection(self) -> None:
        """Duplicate address detection is over, and there was no other."""
        self.addresses = [a._replace(tentative=False) for a in self.addresses]

    def _address(self, ifindex: int, wanted: AddAddress | DeleteAddress) -> Address | None:
        # One IPv6 address has one prefix length; an IPv4 address may come with several.
        whole = wanted.address.version == 4
        for address in self.addresses:
            same = address.address == wanted.address if whole else address.address.ip == wanted.address.ip
            if same and address.ifindex == ifindex:
                return address
        return None

    def _connected(self, address: Address) -> Route:
        ipv4 = address.address.version == 4
        return Route(
            dst=address.address.network,
            ifindex=address.ifindex,
            priority=0 if ipv4 else 256,
            scope=SCOPE_LINK if ipv4 else 0,
            protocol=PROTOCOL_KERNEL,
            src=address.address.ip if isinstance(address.address, IPv4Interface) else None,
        )

    def _add_connected(self, address: Address) -> None:
        route = self._connected(address)
        loopback = self.links[address.ifindex].kind == ""
        if (route.dst.version == 4 and route.dst.prefixlen == 32) or loopback or route in self.routes:
            return
        self.routes.append(route)

    # routes

    def add_route(self, wanted: AddRoute) -> None:
        asked = wanted.route
        link = self.by_index(asked.ifindex) if asked.ifindex or asked.gw is None else None
        ifindex = self._next_hop(asked)
        if link is not None and not link.up:
            refuse(errno.ENETDOWN)
        ipv4 = asked.dst.version == 4
        scope = (asked.scope if asked.scope is not None else 0 if asked.gw else SCOPE_LINK) if ipv4 else 0
        route = asked._replace(
            ifindex=ifindex,
            priority=asked.priority or (0 if ipv4 else 1024),
            scope=scope,
            protocol=asked.protocol or PROTOCOL_BOOT,
        )
        rivals = [r for r in self.routes if _destination(r) == _destination(route)]
        if rivals and (not wanted.append or any(_hop(r) == _hop(route) for r in rivals)):
            refuse(errno.EEXIST)
        # IPv4 uses the last one added first.
        self.routes.insert(self.routes.index(rivals[0]) if rivals and ipv4 else len(self.routes), route)

    def delete_route(self, asked: Route) -> None:
        for route in self.routes:
            if (
                (route.dst, route.table) == (asked.dst, asked.table)
                and asked.ifindex in (0, route.ifindex)
                and asked.gw in (None, route.gw)
                and asked.priority in (0, route.priority)
                and asked.protocol in (0, route.protocol)
                and (asked.scope in (None, route.scope) or asked.dst.version == 6)
            ):
                self.routes.remove(route)
                return
        refuse(errno.ESRCH)

    def _next_hop(self, route: Route) -> int:
        """The link the route leaves by; refuses a gateway that is not reachable directly."""
        gw = route.gw
        if gw is None or route.onlink:
            return route.ifindex
        if isinstance(gw, IPv6Address) and gw.is_link_local:
            return route.ifindex or refuse(errno.EINVAL)
        if any(address.address.ip == gw for address in self.addresses):
            refuse(errno.EINVAL)
        for known in self.routes:
            fits = known.gw is None and known.table == MAIN_TABLE and route.ifindex in (0, known.ifindex)
            if fits and known.dst.version == gw.version and gw in known.dst:
                return known.ifindex
        return refuse(errno.ENETUNREACH if isinstance(gw, IPv4Address) else errno.EHOSTUNREACH)

    # sysctls

    def set_sysctl(self, key: str, value: str) -> None:
        """One that there is. To become a router, or none any more, changes what each link does."""
        before, self.sysctls[key] = self.sysctls[key], value
        if key.endswith("/disable_ipv6") and value == "1":
            self._drop_ipv6(self.by_name(key.split("/")[3]))
        family = _FORWARDING.get(key)
        if family is None or before == value:
            return
        for other in self.sysctls:
            if other.startswith(f"net/{family}/conf/") and other.endswith("/forwarding"):
                self.sysctls[other] = value
        if family == "ipv4":
            self.sysctls["net/ipv4/conf/all/accept_redirects"] = "0" if value == "1" else "1"
        elif value == "1":
            # A router forgets what other routers advertised (rt6_purge_dflt_routers).
            self.routes = [r for r in self.routes if r.protocol != PROTOCOL_RA or self._heeds(r.ifindex)]

    def _drop_ipv6(self, link: FakeLink | None) -> None:
        ifindex = link.ifindex if link is not None else 0
        self.addresses = [a for a in self.addresses if a.ifindex != ifindex or a.address.version == 4]
        self.routes = [r for r in self.routes if r.ifindex != ifindex or r.dst.version == 4]

    def _heeds(self, ifindex: int) -> bool:
        return self.sysctls[f"net/ipv6/conf/{self.by_index(ifindex).name}/accept_ra"] == "2"

    # neighbours and VLANs

    def add_neighbour(self, wanted: Neighbour) -> None:
        self.by_index(wanted.ifindex)
        key = (wanted.ifindex, wanted.address, wanted.proxy)
        self.neighbours = [n for n in self.neighbours if (n.ifindex, n.address, n.proxy) != key]
        self.neighbours.append(wanted._replace(mac=wanted.mac.lower()))

    def resolve(self, ifindex: int, address: IPv4Address | IPv6Address) -> None:
        self.by_index(ifindex)
        known = [n for n in self.neighbours if (n.ifindex, n.address) == (ifindex, address)]
        if not known:
            self.neighbours += [n for n in self.reachable if (n.ifindex, n.address) == (ifindex, address)]

    def change_vlans(self, wanted: AddVlans | DeleteVlans) -> None:
        link = self.by_index(wanted.ifindex)
        if not self._knows_vlans or (link.bridge if wanted.on_bridge else link.port) is None:
            refuse(errno.EOPNOTSUPP)
        for one in wanted.ranges:
            valid = 1 <= one.first <= one.last <= 4094
            if not valid or (one.pvid and one.first != one.last):
                refuse(errno.EINVAL)
        for one in wanted.ranges:
            for vid in range(one.first, one.last + 1):
                if isinstance(wanted, DeleteVlans):
                    link.vlans.pop(vid, None)
                    continue
                if one.pvid:
                    link.vlans = {v: r._replace(pvid=False) for v, r in link.vlans.items()}
                link.vlans[vid] = VlanRange(vid, vid, pvid=one.pvid, untagged=one.untagged)

    def shown_vlans(self, ifindex: int) -> list[VlanRange]:
        link = self.links.get(ifindex)
        shown: list[VlanRange] = []
        for vid, one in sorted(link.vlans.items()) if link else ():
            last = shown[-1] if shown else None
            if last and last.last == vid - 1 and last[2:] == one[2:] and not one.pvid:
                shown[-1] = last._replace(last=vid)
            else:
                shown.append(one)
        return shown


def _destination(route: Route) -> tuple[object, ...]:
    return route.dst, route.table, route.priority


def _broadcast(address: IPv4Interface | IPv6Interface) -> IPv4Address | None:
    if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
        return address.network.broadcast_address
    return None


def _hop(route: Route) -> tuple[object, ...]:
    return route.ifindex, route.gw, route.scope
