"""Nodes for the systems, and what is there when the clock starts: ports, other programs' rules, leases."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, NamedTuple

from cnvnet.ipam.lease import Holder, Lease, LeaseKey
from cnvnet.ipam.store.protocol import Ledger
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.ipam.store.sqlite_schema import SCHEMA
from tests.bench.programs import Programs, agent
from tests.bench.systems import (
    AGENT,
    ALONE,
    CHECKOUT,
    NETWORK,
    OTHER,
    PYTHON,
    REFERENCE,
    SUBNET,
    Failed,
    System,
    call,
)

# A bridge has 1,023 ports at most (BR_MAX_PORTS in net/bridge/br_private.h).
_PORTS_PER_BRIDGE = 1000
_LAST = "bench-last"
_MOST_LEASES = 1_000_000
_LEASES_AT_ONCE = 50_000
_CACHE_KIB = 400_000


class Identity(NamedTuple):
    """By what an attachment's traces in nftables can be distinguished from others'."""

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


class Systems(NamedTuple):
    """The systems on fresh nodes: the reference has one, ours share the second, the other has the third."""

    reference: System
    agent: System
    python: System
    alone: System
    other: System | None
    # Only the agents are measured, ours and the other's.
    agents_only: bool

    @property
    def agents(self) -> list[System]:
        return [self.agent, self.other] if self.other else [self.agent]

    @property
    def all(self) -> list[System]:
        """Each that is measured, to be called in turn."""
        return self.agents if self.agents_only else [self.reference, self.python, self.alone, *self.agents]

    @property
    def nodes(self) -> list[System]:
        """One for each node, for what is there before the clock starts."""
        return self.agents if self.agents_only else [self.reference, *self.agents]


class Nodes:
    """Makes nodes, below `folder` what they keep on the disk, and takes them away again."""

    def __init__(
        self, folder: Path, programs: Programs, other: Programs | None = None, *, agents_only: bool = False
    ) -> None:
        self._folder = folder
        self._programs = programs
        self._other = other
        self._agents_only = agents_only

    @contextmanager
    def systems(self, name: str, *, chains: int = 0) -> Generator[Systems]:
        """Each node with one attachment that stays, and so many foreign chains.

        The reference cannot give an address to a bridge whose last port has gone ("could not set bridge's
        mac"), so a port stays on each; each has made its chains by then, too.
        """
        reference, ours = f"{name}-ref", f"{name}-cnv"
        with ExitStack() as undo:
            for node in (reference, ours):
                self._make(node, undo)
            systems = Systems(
                System(
                    REFERENCE,
                    reference,
                    f"{reference}-pod",
                    "bridge",
                    "host-local",
                    CHECKOUT / ".tools/bin",
                    self._folder / reference,
                    "off",
                ),
                self._ours(AGENT, ours, self._programs.launchers, "auto"),
                self._ours(PYTHON, ours, self._programs.executables, "auto"),
                self._ours(ALONE, ours, self._programs.executables, "off"),
                self._started_other(f"{name}-other", undo),
                self._agents_only,
            )
            undo.enter_context(agent(ours, self._programs, statedir=self._folder / ours))
            for system in systems.nodes:
                if chains:
                    add_foreign_chains(system, chains)
                keep(system, f"{system.node}-keeper", "l3")
            yield systems

    def _started_other(self, node: str, undo: ExitStack) -> System | None:
        """The other checkout's system, on a node of its own with its own agent, if there is one."""
        if self._other is None:
            return None
        self._make(node, undo)
        undo.enter_context(agent(node, self._other, statedir=self._folder / node))
        return self._ours(OTHER, node, self._other.launchers, "auto")

    def _ours(self, column: str, node: str, binaries: Path, agent: str) -> System:
        return System(
            column, node, f"{node}-pod", "cnv-bridge", "static-ip", binaries, self._folder / node, agent
        )

    def _make(self, node: str, undo: ExitStack) -> None:
        (self._folder / node).mkdir(parents=True)
        undo.callback(_remove, node, self._folder / node)
        for netns in (node, f"{node}-pod"):
            run("ip", "netns", "add", netns)
        run("ip", "-n", node, "link", "set", "lo", "up")


def keep(system: System, pod: str, kind: str) -> dict[str, Any]:
    """An attachment that stays as long as the node, of a pod that is made for it; its result."""
    run("ip", "netns", "add", pod)
    return call(system, "ADD", kind, container_id(pod), pod=pod)[1]


def _remove(node: str, folder: Path) -> None:
    """The node with all its pods. It has gone on return: the next case has the machine for itself."""
    for each in Path("/run/netns").iterdir():
        if each.name == node or each.name.startswith(f"{node}-"):
            run("ip", "netns", "del", each.name)
    shutil.rmtree(folder)
    # Namespaces go in the order in which they were deleted, and a veth's other end goes with its own.
    run("ip", "netns", "add", _LAST)
    run("ip", "link", "add", _LAST, "type", "veth", "peer", "name", "inside", "netns", _LAST)
    run("ip", "netns", "del", _LAST)
    while _LAST in (name for _, name in socket.if_nameindex()):
        time.sleep(0.05)


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
    """A foreign table with so many chains, as kube-proxy keeps them for its services."""
    chains = [f"add chain ip foreign service-{n}" for n in range(count)]
    rules = [
        f"add rule ip foreign service-{n} ip daddr 10.96.{n >> 8 & 255}.{n & 255} accept"
        for n in range(count)
    ]
    on(system, "nft", "-f", "-", stdin="\n".join(["add table ip foreign", *chains, *rules]) + "\n")


def add_leases(system: System, first: int, last: int) -> None:
    """Addresses numbered first to last-1, scattered over the subnet, stored as the system itself does it."""
    if system.name == REFERENCE:
        folder = system.folder / NETWORK
        for number in range(first, last):
            (folder / str(_addresses()[number])).write_text(f"{container_id(str(number))}\r\neth0")
    else:
        _lease(system, first, last)
    # Calls sync what they write, and would wait for this, too.
    os.sync()


def _lease(system: System, first: int, last: int) -> None:
    _same_schema(system)
    store = Sqlite(str(system.folder))
    # Half of the time, with a million; it goes with the connection.
    store.run(lambda ledger: ledger.connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}"))
    for begin in range(first, last, _LEASES_AT_ONCE):
        store.run(partial(_write_leases, first=begin, last=min(begin + _LEASES_AT_ONCE, last)))
    store.close()


def _write_leases(ledger: Ledger, first: int, last: int) -> None:
    for number in range(first, last):
        holder = Holder(container_id(str(number)), "eth0", "active", "", 0, "", 0)
        key = LeaseKey(NETWORK, "default", f"vm-{number}", "eth0")
        ledger.change(None, Lease(key, (_addresses()[number],), holders=(holder,)), until=0)


def _same_schema(system: System) -> None:
    """Failed: the other checkout's leases.db, which its own ADD has made, has other tables than ours.

    The leases of its node are written by our code, too.
    """
    with closing(sqlite3.connect(f"file:{system.folder}/leases.db?mode=ro", uri=True)) as connection:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found != SCHEMA:
        raise Failed(
            f"{system.name}: its leases.db has schema {found}, ours {SCHEMA}: no leases made "
            "(name the other cases with --only)"
        )


@cache
def _addresses() -> list[IPv4Address]:
    network = IPv4Network(SUBNET)
    # Beyond what the attachments of the run itself get at its low end.
    numbers = random.Random(0).sample(range(1 << 16, network.num_addresses - 2), _MOST_LEASES)
    return [network[number] for number in numbers]
