"""Nodes for the systems, and what is there when the clock starts: ports, other programs' rules, leases."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, NamedTuple

from cnvnet.ipam.lease import Holder, Key, Lease
from cnvnet.ipam.sqlite import Sqlite
from tests.bench.resident import Resident
from tests.bench.systems import CHECKOUT, NETWORK, OURS, REFERENCE, SUBNET, System, call

# A bridge has 1,023 ports at most (BR_MAX_PORTS in net/bridge/br_private.h).
_PORTS_PER_BRIDGE = 1000
_KEEPER = "keeper"


class Identity(NamedTuple):
    """By what an attachment's traces in nftables can be told from others'."""

    port: str
    mac: str
    container_id: str


def run(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr[:500]}")
    return done.stdout


def on(system: System, *argv: str, stdin: str = "") -> str:
    return run("nsenter", f"--net=/run/netns/{system.node}", *argv, stdin=stdin)


def make_pair(
    name: str, folder: Path, *, resident: Callable[[str], Resident] | None = None
) -> tuple[System, System]:
    """The two systems on fresh nodes, each with one attachment that stays; `resident` starts ours.

    The reference cannot give an address to a bridge whose last port has gone ("could not set bridge's mac"),
    so a port stays on both; both have made their chains by then, too.
    """
    reference = _make(f"{name}-ref", REFERENCE, "bridge", "host-local", CHECKOUT / ".tools/bin", folder)
    ours = _make(f"{name}-cnv", OURS, "cnv-bridge", "static-ip", CHECKOUT / ".tools/installed/bin", folder)
    if resident is not None:
        ours = ours._replace(resident=resident(ours.node))
    pair = (reference, ours)
    for system in pair:
        run("ip", "netns", "add", f"{system.node}-keeper")
        call(system, "ADD", "l3", container_id(_KEEPER), pod=f"{system.node}-keeper")
    return pair


def _make(node: str, name: str, bridge: str, ipam: str, binaries: Path, folder: Path) -> System:
    state = folder / node
    state.mkdir(parents=True)
    for netns in (node, f"{node}-pod"):
        run("ip", "netns", "add", netns)
    system = System(name, node, f"{node}-pod", bridge, ipam, binaries, state)
    on(system, "ip", "link", "set", "lo", "up")
    return system


def container_id(name: str) -> str:
    """As long as a real one, since the reference puts it into the names of its chains."""
    return hashlib.sha256(name.encode()).hexdigest()


def add_ports(system: System, first: int, last: int) -> None:
    """Ports numbered first to last-1 with their guards: links in one batch, nftables in one transaction.

    The guards are copies of what the system's own ADD leaves in nftables, under other names.
    """
    identities = [_identity(number) for number in range(first, last)]
    on(system, "ip", "-batch", "-", stdin="\n".join(_links(first, identities)) + "\n")
    example = _example(system)
    ruleset = json.loads(on(system, "nft", "-j", "list", "ruleset"))["nftables"]
    traces = list(_traces(ruleset, example))
    call(system, "DEL", "macspoofchk", example.container_id)
    if not traces:
        raise RuntimeError(f"{system.name}: macspoofchk left nothing in nftables")
    copies: list[Any] = []
    for trace in traces:
        text = json.dumps(trace)
        copies += [{"add": json.loads(_renamed(text, example, identity))} for identity in identities]
    on(system, "nft", "-j", "-f", "-", stdin=json.dumps({"nftables": copies}))


def _identity(number: int) -> Identity:
    mac = f"06:00:00:00:{number >> 8:02x}:{number & 0xFF:02x}"
    return Identity(f"veth{number:08x}", mac, container_id(f"port {number}"))


def _links(first: int, identities: list[Identity]) -> Iterator[str]:
    """Both ends of a veth are ports, and down: a loop on a bridge where nothing ever moves."""
    for number, identity in enumerate(identities, first):
        bridge = f"full{number // _PORTS_PER_BRIDGE}"
        if number % _PORTS_PER_BRIDGE == 0:
            yield f"link add name {bridge} type bridge"
        if number % 2:
            yield f"link set dev {identity.port} master {bridge}"
        else:
            peer = _identity(number + 1).port
            yield f"link add name {identity.port} master {bridge} type veth peer name {peer}"


def _example(system: System) -> Identity:
    name = container_id("example")
    _, result = call(system, "ADD", "macspoofchk", name)
    port = next(item for item in result["interfaces"] if item["name"].startswith("veth"))
    inside = next(item for item in result["interfaces"] if item.get("sandbox"))
    return Identity(port["name"], inside["mac"], name)


def _traces(ruleset: list[dict[str, Any]], example: Identity) -> Iterator[dict[str, Any]]:
    """What of the ruleset is the example's: chains, then elements of sets and maps, then rules."""
    for kinds in (("chain",), ("set", "map"), ("rule",)):
        for item in ruleset:
            for kind in kinds:
                if kind in item:
                    yield from _own_part(kind, item[kind], example)


def _own_part(kind: str, value: dict[str, Any], example: Identity) -> Iterator[dict[str, Any]]:
    if kind in ("set", "map"):
        elements = [each for each in value.get("elem", []) if _mentions(each, example)]
        if elements:
            where = {key: value[key] for key in ("family", "table", "name")}
            yield {"element": {**where, "elem": elements}}
    elif _mentions(value, example):
        yield {kind: {key: part for key, part in value.items() if key != "handle"}}


def _mentions(value: object, example: Identity) -> bool:
    text = json.dumps(value)
    return example.port in text or example.container_id in text


def _renamed(text: str, example: Identity, identity: Identity) -> str:
    for old, new in zip(example, identity, strict=True):
        text = text.replace(old, new)
    return text


def add_foreign_chains(system: System, count: int) -> None:
    """A table of somebody else's with so many chains, as kube-proxy keeps them for its services."""
    chains = [f"add chain ip foreign service-{n}" for n in range(count)]
    rules = [
        f"add rule ip foreign service-{n} ip daddr 10.96.{n >> 8 & 255}.{n & 255} accept"
        for n in range(count)
    ]
    on(system, "nft", "-f", "-", stdin="\n".join(["add table ip foreign", *chains, *rules]) + "\n")


def add_leases(system: System, count: int) -> None:
    """So many addresses, scattered over the subnet, as the system itself would have stored them."""
    addresses = _addresses(count)
    if system.name == REFERENCE:
        folder = system.folder / NETWORK
        for number, ip in enumerate(addresses):
            (folder / str(ip)).write_text(f"{container_id(str(number))}\r\neth0")
        return
    store = Sqlite(str(system.folder))
    with store.transaction() as ledger:
        for number, ip in enumerate(addresses):
            holder = Holder(container_id(str(number)), "eth0", "active", "", 0, "", 0)
            lease = Lease(Key(NETWORK, "default", f"vm-{number}", "eth0"), (ip,), holders=(holder,))
            ledger.change(None, lease, until=0)
    store.close()


def _addresses(count: int) -> list[IPv4Address]:
    network = IPv4Network(SUBNET)
    # Beyond what the attachments of the run itself get at its low end.
    numbers = random.Random(0).sample(range(1 << 16, network.num_addresses - 2), count)
    return [network[number] for number in numbers]
