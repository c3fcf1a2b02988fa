"""Everything a plugin can have done to a node and a pod, what is random in it replaced by what it is for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from tests.functional.bridge.bridge_network import ports
from tests.harness import Node, Sandbox

# Of no interest: they say when something was made, or repeat the random parts of it.
_VOLATILE = re.compile(
    r"ifindex|link_index|link_netnsid|.*timer.*|.*_id|id|no|root_port|designated_.*|topology_.*|broadcast"
    r"|.*valid_life_time|preferred_life_time|tentative|dynamic|group_addr|qdisc|operstate"
)
# The kernel notices carriers by and by, at most once a second.
_CARRIER = {"NO-CARRIER", "LOWER_UP", "linkdown"}


class Roles:
    """What the random names and MACs on one node stand for; further pods' eth0 count too."""

    def __init__(self, node: Node, pod: Sandbox, bridge: str) -> None:
        self._words: dict[str, str] = {pod.netns: "<pod>"}
        interfaces = [("pod", pod, name) for name in pod.links() if name != "lo"]
        for number, port in enumerate(ports(node, bridge)):
            self._words[port] = f"<port {number}>"
            interfaces.append(("node", node, port))
        interfaces.extend(("node", node, name) for name in (bridge,) if node.link(name))
        for where, sandbox, name in interfaces:
            mac = (sandbox.link(name) or {})["address"]
            # One that was asked for keeps its digits: it has to be the right one.
            if not mac.startswith("02:00:00:00:00"):
                self._words.setdefault(mac, f"<mac of {where}'s {self._words.get(name, name)}>")

    def name(self, text: str) -> str:
        """The text with roles in place of what is random."""
        for word, role in self._words.items():
            text = text.replace(word, role)
        return text


def snapshot(node: Node, pod: Sandbox, roles: Roles) -> dict[str, str]:
    """Path and value of every property of links, addresses, routes, rules, VLANs and sysctls."""
    seen: dict[str, str] = {}
    for where, sandbox in (("node", node), ("pod", pod)):
        document = {
            "links": {item["ifname"]: item for item in sandbox.ip("link")},
            "addresses": _addresses(sandbox),
            "routes4": _routes(sandbox, "-4"),
            "routes6": _routes(sandbox, "-6"),
            "rules": sandbox.ip("rule"),
            "sysctls": _sysctls(sandbox),
        }
        for path, value in _flat(document, where):
            seen[roles.name(path)] = roles.name(value)
    return seen


def differences(left: dict[str, str], right: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Where two snapshots disagree; "" where one says nothing."""
    pairs = {key: (left.get(key, ""), right.get(key, "")) for key in left.keys() | right.keys()}
    return {key: pair for key, pair in sorted(pairs.items()) if pair[0] != pair[1]}


def _addresses(sandbox: Sandbox) -> dict[str, Any]:
    return {
        f"{link['ifname']} {address['local']}": address
        for link in sandbox.ip("addr")
        for address in link["addr_info"]
        if not address["local"].startswith("fe80:")
    }


def _routes(sandbox: Sandbox, family: str) -> dict[str, Any]:
    routes = sandbox.ip(family, "route", "show", "table", "all")
    # What IPv6 routes to itself comes and goes with duplicate detection and carriers.
    return {
        f"{route.get('table', 'main')} {route.get('type')} {route['dst']} {route.get('dev')}": route
        for route in routes
        if not str(route["dst"]).startswith(("fe80:", "ff00:"))
        and (family == "-4" or route.get("table") != "local")
    }


def _sysctls(sandbox: Sandbox) -> dict[str, str]:
    folders = [f"/proc/sys/net/ipv{n}/conf" for n in (4, 6)] + ["/proc/sys/net/ipv4/ip_forward"]
    lines = sandbox.run("grep", "-rHs", ".", *folders, check=False).stdout.splitlines()
    return dict(line.removeprefix("/proc/sys/net/").split(":", 1) for line in lines)


def _flat(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            if not _VOLATILE.fullmatch(key):
                yield from _flat(item, f"{path}|{key}")
    elif isinstance(value, list):
        items = {str(item) for item in cast("list[object]", value)}
        yield path, " ".join(sorted(items - _CARRIER))
    else:
        yield path, str(value)
