"""What there is of attachments on a node: in the kernel, among the records and in the database of leases."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness import Node, Sandbox

_DATABASE = ("leases.db", "leases.db-wal", "leases.db-journal")
_POOLS = Path("kubernetes/pools")
_CLUSTER = {Path("kubernetes"), Path("kubernetes/holds"), _POOLS}
_USUAL = {*_DATABASE, "leases.db-shm", "leases.lock", "leases.kept", "leases.kept.new"}


class Lease(NamedTuple):
    """A lease and its holders as (container id, role); `network/namespace/vm/interface` is its key."""

    key: str
    ips: tuple[str, ...]
    mac: str
    since: int
    holders: tuple[tuple[str, str], ...]


class AttachmentState(NamedTuple):
    """All that belongs to attachments. What they share (a bridge, tables, lock files) is no part of it."""

    links: tuple[str, ...]
    inside: tuple[str, ...]
    elements: tuple[str, ...]
    files: tuple[str, ...]
    leases: tuple[Lease, ...]


def attachment_state(node: Node, *pods: Sandbox) -> AttachmentState:
    links, listed = _seen(node)
    return AttachmentState(
        links=tuple(sorted(name for name, kind in links.items() if kind != "bridge")),
        inside=tuple(sorted(f"{pod.netns} {name}" for pod in pods for name in pod.links() if name != "lo")),
        elements=tuple(sorted(_elements(listed))),
        files=tuple(files(node)),
        leases=tuple(leases(node)),
    )


def leases(node: Node) -> list[Lease]:
    """What the next process will find in the database, which is not touched. It is sound."""
    with tempfile.TemporaryDirectory() as folder:
        for name in _DATABASE:
            if (node.statedir / name).exists():
                shutil.copy(node.statedir / name, folder)
        database = Path(folder, "leases.db")
        if not database.exists():
            return []
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                return []  # killed before it had any tables
            _assert_sound(connection)
            return sorted(_leases(connection))


def held(node: Node) -> list[Lease]:
    """The leases that a container holds, and those that should not outlive their holders."""
    return [lease for lease in leases(node) if lease.holders or not lease.key.split("/")[1]]


def files(node: Node) -> list[str]:
    """Records, markers and whatever a call keeps for a moment only; not the database and not lock files."""
    return sorted([*_files(node.rundir), *_strangers(node.statedir)])


def shared(node: Node) -> dict[str, Any]:
    """What attachments share: bridges with their MAC and addresses, and the chains that do not change."""
    links, listed = _seen(node)
    bridges = [name for name, kind in links.items() if kind == "bridge"]
    chains = [item["chain"] for item in listed if "chain" in item]
    return {
        "bridges": {
            name: ((node.link(name) or {})["address"], sorted(node.addresses(name))) for name in bridges
        },
        "chains": sorted(f"{chain['family']} {chain['table']} {chain['name']}" for chain in chains),
    }


def _seen(node: Node) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The kinds of the node's links by their names, and its nftables, in one go: this is done very often."""
    shown = node.run("sh", "-c", "ip -d -j link; echo; nft -j list ruleset").stdout
    links, _, listed = shown.partition("\n")
    kinds = {link["ifname"]: link.get("linkinfo", {}).get("info_kind", "") for link in json.loads(links)}
    kinds.pop("lo")
    return kinds, json.loads(listed.strip())["nftables"]


def _elements(listed: list[dict[str, Any]]) -> Iterator[str]:
    for item in listed:
        named: dict[str, Any] = item.get("set") or item.get("map") or {}
        for element in named.get("elem", ()):
            yield f"{named['family']} {named['table']} {named['name']}: {json.dumps(element)}"


def _files(rundir: Path) -> Iterator[str]:
    for path in rundir.rglob("*"):
        if path.parent != rundir and path.parent.name != "locks":
            yield str(path.relative_to(rundir))


def _strangers(statedir: Path) -> Iterator[str]:
    # What a network of the cluster has to give is kept like the database: for the next ADD.
    for path in (each.relative_to(statedir) for each in statedir.rglob("*")):
        if path not in _CLUSTER and path.parent != _POOLS and path.name not in _USUAL:
            yield path.name


def _assert_sound(connection: sqlite3.Connection) -> None:
    """No address of a lease that is not there, no lease without one; runs say what addresses say."""
    numbers = {number for (number,) in connection.execute("SELECT id FROM leases")}
    owners = {number for (number,) in connection.execute("SELECT lease FROM addresses WHERE lease NOT NULL")}
    assert owners == numbers
    assert {number for (number,) in connection.execute("SELECT lease FROM holders")} <= numbers
    used = [
        (network, _number(ip)) for network, ip in connection.execute("SELECT network, ip FROM addresses")
    ]
    assert max(Counter(used).values(), default=0) <= 1
    runs = connection.execute("SELECT network, first, last FROM runs").fetchall()
    spans = [(network, _number(first), _number(last)) for network, first, last in runs]
    assert sorted(used) == sorted((n, ip) for n, first, last in spans for ip in range(first, last + 1))
    begins = {(network, first) for network, first, _ in spans}
    assert not any((network, last + 1) in begins for network, _, last in spans), "runs that touch"


def _leases(connection: sqlite3.Connection) -> Iterator[Lease]:
    query = "SELECT id, network, namespace, vm, interface, mac, since FROM leases"
    for number, *key, mac, since in connection.execute(query).fetchall():
        found = connection.execute("SELECT ip FROM addresses WHERE lease=?", (number,))
        ips = sorted(str(ip_address(ip[1:])) for (ip,) in found)
        holders = connection.execute("SELECT container_id, role FROM holders WHERE lease=?", (number,))
        yield Lease("/".join(key), tuple(ips), mac or "", since, tuple(sorted(holders)))


def _number(ip: bytes) -> int:
    return int.from_bytes(ip, "big")
