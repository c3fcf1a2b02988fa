"""Pods and what is in them: our bindings, KubeVirt's as its own code makes them, and plain kernel paths.

Each has a client outside, a pod behind it and a guest. A guest is a namespace whose veth stands in the place
of the pod's tap, under its name; or it is the tap itself, from which the instrument reads.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from tests.bench.datapath.ways import Tap, Way, datagram
from tests.bench.nodes import run
from tests.bench.systems import CHECKOUT, Failed

_CLIENT: Final = ("10.1.0.1", "fd01::1")
_POD: Final = ("10.1.0.2", "fd01::2")
_GATEWAY: Final = ("10.0.2.1", "fd10:0:2::1")
_GUEST: Final = ("10.0.2.2", "fd10:0:2::2")
_GATEWAY_MAC: Final = "02:00:00:00:00:00"
_GUEST_MAC: Final = "52:54:00:00:00:01"
_BRIDGE: Final = "k6t-eth0"
_TAP: Final = "tap0"
_BRIDGE_SWITCHES: Final = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")


class Places(NamedTuple):
    """The namespaces of one way."""

    client: str
    pod: str
    guest: str


def routed(undo: ExitStack, column: str, *, tap: bool = False, **keys: Any) -> Way:
    """Our masquerade, with these keys of its configuration."""
    places = _pod(undo, column)
    _cni(places, "masquerade", **keys)
    return _behind_gateway(column, places, tap=tap)


def bridged(undo: ExitStack, column: str, *, tap: bool = False, **keys: Any) -> Way:
    """Our vm-bridge."""
    places = _pod(undo, column)
    mac = _mac(places.pod, "eth0")
    _cni(places, "vm-bridge", **keys)
    return _on_the_lan(column, places, mac, tap=tap)


def kubevirt_routed(undo: ExitStack, column: str, *, tap: bool = False, shown: bool = False) -> Way:
    """KubeVirt's masquerade binding (pkg/network/setup/netpod/masquerade) without listed ports.

    `shown`: br_netfilter shows the pod's rules what is only bridged, as on nodes made by kubeadm.
    """
    places = _pod(undo, column)
    _ip(places.pod, f"link add {_BRIDGE} address {_GATEWAY_MAC} mtu 1500 type bridge")
    for address, length in zip(_GATEWAY, (24, 120), strict=True):
        _ip(places.pod, f"addr add {address}/{length} dev {_BRIDGE}")
    _ip(places.pod, f"link set {_BRIDGE} up")
    _set(places.pod, f"net.ipv4.conf.{_BRIDGE}.route_localnet=1", "net.ipv4.ip_forward=1")
    _set(places.pod, "net.ipv6.conf.all.forwarding=1")
    _show(places.pod, shown=shown)
    _add_tap(places.pod)
    for family, guest, gateway, loopback in zip(
        ("ip", "ip6"), _GUEST, _GATEWAY, ("127.0.0.1", "::1"), strict=True
    ):
        _nft(places.pod, _kubevirt_rules(family, guest, gateway, loopback))
    return _behind_gateway(column, places, tap=tap)


def kubevirt_bridged(undo: ExitStack, column: str, *, tap: bool = False, shown: bool = False) -> Way:
    """KubeVirt's bridge binding."""
    places = _pod(undo, column)
    pod = places.pod
    mac = _mac(pod, "eth0")
    _ip(pod, f"link add {_BRIDGE} type bridge")
    _ip(pod, f"addr add 169.254.75.10/32 dev {_BRIDGE}")
    _ip(pod, f"link set {_BRIDGE} up")
    _ip(pod, "link set eth0 down")
    _ip(pod, f"link set eth0 name eth0-nic address {_mac(pod, _BRIDGE)} master {_BRIDGE}")
    _ip(pod, "addr flush dev eth0-nic")
    _ip(pod, "link set eth0-nic up")
    run("bridge", "-n", pod, "link", "set", "dev", "eth0-nic", "learning", "off")
    _add_tap(pod)
    # It stays down; KubeVirt's is a dummy, which not every kernel has.
    _ip(pod, f"link add eth0 address {mac} type bridge")
    _ip(pod, f"addr add {_POD[0]}/24 dev eth0")
    _set(pod, "net.ipv4.conf.all.arp_ignore=1")
    _show(pod, shown=shown)
    return _on_the_lan(column, places, mac, tap=tap)


def forwarded(undo: ExitStack, column: str) -> Way:
    """A pod that does nothing but forward, by a bridge as KubeVirt's."""
    places = _pod(undo, column)
    _ip(places.pod, f"link add {_BRIDGE} address {_GATEWAY_MAC} type bridge")
    for address, length in zip(_GATEWAY, (24, 120), strict=True):
        _ip(places.pod, f"addr add {address}/{length} dev {_BRIDGE}")
    _ip(places.pod, f"link set {_BRIDGE} up")
    _set(places.pod, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    _show(places.pod, shown=False)
    _add_tap(places.pod)
    way = _behind_gateway(column, places, tap=False)
    _ip(places.client, f"route add 10.0.2.0/24 via {_POD[0]}")
    _ip(places.client, f"-6 route add fd10:0:2::/120 via {_POD[1]}")
    return way._replace(guest_address=_GUEST)


def switched(undo: ExitStack, column: str) -> Way:
    """A pod that is nothing but a bridge."""
    places = _pod(undo, column)
    _ip(places.pod, "addr flush dev eth0")
    _ip(places.pod, f"link add {_BRIDGE} type bridge")
    _ip(places.pod, f"link set {_BRIDGE} up")
    _ip(places.pod, f"link set eth0 master {_BRIDGE}")
    _show(places.pod, shown=False)
    _add_tap(places.pod)
    return _on_the_lan(column, places, _GUEST_MAC, tap=False)


def direct(undo: ExitStack, column: str) -> Way:
    """A veth between client and guest, and no pod."""
    places = _places(undo, column)
    _veth(places.client, "eth0", places.guest, "eth0")
    _address(places.client, "eth0", _CLIENT)
    _address(places.guest, "eth0", _POD)
    return Way(column, places.client, places.guest, _CLIENT, _POD)


def _behind_gateway(column: str, places: Places, *, tap: bool) -> Way:
    if tap:
        link = _BRIDGE if _has(places.pod, _BRIDGE) else _TAP
        _ip(places.pod, f"neigh replace {_GUEST[0]} lladdr {_GUEST_MAC} dev {link} nud permanent")
        frame = datagram(source_mac=_GUEST_MAC, mac=_GATEWAY_MAC, source=_GUEST[0], destination=_CLIENT[0])
        return Way(column, places.client, "", _CLIENT, _POD, Tap(places.pod, _TAP, frame))
    _put_guest(places, _GUEST_MAC)
    for version, address, length, gateway in zip(("-4", "-6"), _GUEST, (24, 120), _GATEWAY, strict=True):
        _ip(places.guest, f"addr add {address}/{length} dev eth0" + (" nodad" if version == "-6" else ""))
        _ip(places.guest, f"{version} route add default via {gateway}")
    return Way(column, places.client, places.guest, _CLIENT, _POD)


def _on_the_lan(column: str, places: Places, mac: str, *, tap: bool) -> Way:
    if tap:
        _ip(places.client, f"neigh replace {_POD[0]} lladdr {mac} dev eth0 nud permanent")
        frame = datagram(
            source_mac=mac, mac=_mac(places.client, "eth0"), source=_POD[0], destination=_CLIENT[0]
        )
        return Way(column, places.client, "", _CLIENT, _POD, Tap(places.pod, _TAP, frame))
    _put_guest(places, mac)
    _address(places.guest, "eth0", _POD)
    return Way(column, places.client, places.guest, _CLIENT, _POD)


def _put_guest(places: Places, mac: str) -> None:
    """A veth takes the tap's place, name and bridge; rules that name the tap are for it from now on."""
    pod = places.pod
    tables = [line for line in _nft(pod, "list tables").splitlines() if line.startswith("table netdev ")]
    rules = {table: _nft(pod, f"list {table}") for table in tables}
    (tap,) = json.loads(run("ip", "-n", pod, "-d", "-j", "link", "show", _TAP))
    addresses = json.loads(run("ip", "-n", pod, "-j", "addr", "show", _TAP))[0]["addr_info"]
    values = {key: _value(pod, key) for key in _settings_of_tap()}
    for table in tables:
        _nft(pod, f"delete {table}")
    _ip(pod, f"link set {_TAP} down")
    _ip(pod, f"link set {_TAP} name replaced")
    _ip(pod, "addr flush dev replaced")
    address = f"address {tap['address']} " if not tap.get("master") else ""
    _ip(pod, f"link add {_TAP} {address}mtu {tap['mtu']} type veth peer name eth0 netns {places.guest}")
    _ip(places.guest, f"link set eth0 address {mac} up")
    for key, value in values.items():
        if value:
            _set(pod, f"{key}={value}")
    _ip(pod, f"link set {_TAP} up" + (f" master {tap['master']}" if tap.get("master") else ""))
    for each in addresses:
        nodad = " nodad" if each["family"] == "inet6" else ""
        _ip(pod, f"addr replace {each['local']}/{each['prefixlen']} dev {_TAP}{nodad}")
    if "PROMISC" in tap["flags"]:
        _ip(pod, f"link set {_TAP} promisc on")
    for text in rules.values():
        _nft(pod, text)


def _settings_of_tap() -> Sequence[str]:
    return (
        f"net.ipv6.conf.{_TAP}.disable_ipv6",
        f"net.ipv4.conf.{_TAP}.forwarding",
        f"net.ipv6.conf.{_TAP}.forwarding",
        f"net.ipv4.conf.{_TAP}.route_localnet",
        f"net.ipv6.conf.{_TAP}.accept_dad",
    )


def _kubevirt_rules(family: str, guest: str, gateway: str, loopback: str) -> str:
    table = f"{family} nat"
    hooks = {"prerouting": -100, "input": 100, "output": -100, "postrouting": 100}
    lines = [f"add table {table}"]
    lines += [
        f"add chain {table} {hook} {{ type nat hook {hook} priority {at}; }}" for hook, at in hooks.items()
    ]
    lines += [f"add chain {table} KUBEVIRT_{name}INBOUND" for name in ("PRE", "POST")]
    lines += [
        f"add rule {table} {rule}"
        for rule in (
            f"postrouting {family} saddr {guest} counter masquerade",
            "prerouting iifname eth0 counter jump KUBEVIRT_PREINBOUND",
            f"postrouting oifname {_BRIDGE} counter jump KUBEVIRT_POSTINBOUND",
            f"KUBEVIRT_PREINBOUND counter dnat to {guest}",
            f"KUBEVIRT_POSTINBOUND {family} saddr {{ {loopback} }} counter snat to {gateway}",
            f"output {family} daddr {{ {loopback} }} counter dnat to {guest}",
        )
    ]
    return "\n".join(lines) + "\n"


def _pod(undo: ExitStack, column: str) -> Places:
    """A client and a pod with addresses on one veth; nothing behind the pod yet."""
    places = _places(undo, column)
    _veth(places.client, "eth0", places.pod, "eth0")
    _address(places.client, "eth0", _CLIENT)
    _address(places.pod, "eth0", _POD)
    _ip(places.pod, f"route add default via {_CLIENT[0]}")
    _ip(places.pod, f"-6 route add default via {_CLIENT[1]}")
    return places


def _places(undo: ExitStack, column: str) -> Places:
    stem = re.sub(r"\W+", "-", f"way {column}")
    places = Places(f"{stem}-client", f"{stem}-pod", f"{stem}-guest")
    for each in places:
        run("ip", "netns", "add", each)
        undo.callback(run, "ip", "netns", "del", each)
        _ip(each, "link set lo up")
    return places


def _veth(one: str, ifname: str, other: str, other_ifname: str) -> None:
    _ip(one, f"link add {ifname} type veth peer name {other_ifname} netns {other}")
    _ip(one, f"link set {ifname} up")
    _ip(other, f"link set {other_ifname} up")


def _address(netns: str, ifname: str, addresses: tuple[str, str]) -> None:
    _ip(netns, f"addr add {addresses[0]}/24 dev {ifname}")
    _ip(netns, f"addr add {addresses[1]}/64 dev {ifname} nodad")


def _add_tap(pod: str) -> None:
    _ip(pod, f"tuntap add dev {_TAP} mode tap user 107 group 107 one_queue pi")
    _ip(pod, f"link set {_TAP} mtu 1500 master {_BRIDGE} up")


def _cni(places: Places, plugin: str, **keys: Any) -> None:
    """ADD of one of ours behind the pod's interface, without an agent."""
    config = {
        "cniVersion": "1.0.0",
        "name": "ways",
        "type": plugin,
        "prevResult": _result(places.pod),
        **keys,
    }
    installed = CHECKOUT / ".tools/installed/bin"
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": places.pod,
        "CNI_NETNS": f"/run/netns/{places.pod}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(installed),
        "CNVNET_AGENT": "off",
        "CNVNET_RUNDIR": "/run/ways",
    }
    done = subprocess.run(
        [installed / plugin],
        input=json.dumps(config),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"{plugin} ADD: {done.stdout}{done.stderr}")


def _result(pod: str) -> dict[str, Any]:
    ips = [
        {"address": f"{address}/{length}", "gateway": gateway, "interface": 0}
        for address, length, gateway in zip(_POD, (24, 64), _CLIENT, strict=True)
    ]
    interface = {"name": "eth0", "mac": _mac(pod, "eth0"), "sandbox": f"/run/netns/{pod}"}
    return {"cniVersion": "1.0.0", "interfaces": [interface], "ips": ips}


def _show(pod: str, *, shown: bool) -> None:
    """Whether br_netfilter shows bridged packets to the pod's rules; nothing where it is not loaded."""
    for key in _BRIDGE_SWITCHES:
        if _value(pod, key):
            _set(pod, f"{key}={int(shown)}")


def shows_bridged_packets() -> bool:
    """Whether this kernel has br_netfilter."""
    return os.path.exists("/proc/sys/net/bridge/bridge-nf-call-iptables")


def _ip(netns: str, words: str) -> str:
    return run("ip", "-n", netns, *words.split())


def _has(netns: str, ifname: str) -> bool:
    return any(link["ifname"] == ifname for link in json.loads(run("ip", "-n", netns, "-j", "link")))


def _mac(netns: str, ifname: str) -> str:
    (link,) = json.loads(run("ip", "-n", netns, "-j", "link", "show", ifname))
    return str(link["address"])


def _inside(netns: str, *argv: str, stdin: str = "") -> str:
    return run("nsenter", f"--net=/run/netns/{netns}", *argv, stdin=stdin)


def _set(netns: str, *settings: str) -> None:
    _inside(netns, "sysctl", "-qw", *settings)


def _value(netns: str, key: str) -> str:
    return _inside(netns, "sysctl", "-eqn", key).strip()


def _nft(netns: str, text: str) -> str:
    return _inside(netns, "nft", "-f", "-", stdin=text)
