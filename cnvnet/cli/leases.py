"""cnvctl leases: who has which address, and what a person changes about it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import click

from cnvnet.attachment.files import read_all
from cnvnet.cli import output
from cnvnet.cli.lease_rows import (
    HEADINGS,
    WIDE_HEADINGS,
    Row,
    as_json,
    details,
    full_name,
    is_named,
    line,
    rows,
    wide_line,
)
from cnvnet.cli.place import Place
from cnvnet.cli.stores import embedded_of_network, find, node_of, of_network
from cnvnet.cni.document import escaped
from cnvnet.cni.environment import is_name
from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import as_address, as_mac
from cnvnet.ipam import allocator, refusals
from cnvnet.ipam.lease import STOPPED, Cooldown, Lease, LeaseKey
from cnvnet.ipam.static_ip import recovery
from cnvnet.ipam.static_ip.config import as_seconds
from cnvnet.ipam.static_ip.recovery import Recovered
from cnvnet.ipam.store import data_dirs
from cnvnet.ipam.store.protocol import Ledger, Store
from cnvnet.ipam.store.ref import KUBERNETES, SQLITE
from cnvnet.ipam.store.sqlite import Sqlite
from cnvnet.kernel.stack import LinuxKernel
from cnvnet.kube.ended import reason_to_keep
from cnvnet.vm import identity

# Said where nothing was found that may be in a store which no record names any more.
_ELSEWHERE: Final = "for a network with a dataDir: --data-dir"


def _absolute(_: click.Context, __: click.Parameter, value: str) -> str:
    return os.path.abspath(value) if value else ""


data_dir_option = click.option(
    "--data-dir",
    default="",
    metavar="DIR",
    callback=_absolute,
    help="The folder of leases.db, where a network's dataDir names one.",
)
store_option = click.option(
    "--store",
    "kind",
    type=click.Choice((KUBERNETES, SQLITE)),
    help="Of the cluster's leases or of this node's folders only.  [default: both]",
)
_of_network = click.option("--network", required=True, help="The network's name in its configuration.")
_interface = click.option(
    "--interface", default="", help="Of this interface of the VM only.  [default: all of them]"
)


@click.group("leases")
def group() -> None:
    """Who has which addresses: list, release, reserve.

    A VM is written as NAMESPACE/NAME. A container that is no VM goes by its id, of which the beginning will
    do; list and show know it by its pod as well.
    """


@group.command("list")
@click.option("--network", default="", help="Of this network only.")
@click.option("--vm", default="", metavar="VM", help="Of this VM, pod or container only.")
@click.option("--stopped", is_flag=True, help="Only what is kept for VMs that do not run.")
@store_option
@data_dir_option
@output.output_option(output.TABLE, output.WIDE, output.JSON)
@click.pass_obj
def list_(
    place: Place, network: str, vm: str, stopped: bool, kind: str | None, data_dir: str, form: str
) -> None:
    """List who has which addresses.

    Those that a VM gave up a moment ago, and no other gets yet, are cooling.
    """
    now = int(time.time())
    everything, trouble = find_rows(place, data_dir, kind or "", network, now)
    matching = [
        row for row in everything if (not vm or row.is_named(vm)) and (not stopped or row.state == STOPPED)
    ]
    if form == output.JSON:
        output.print_json({"leases": [as_json(row) for row in matching]})
    elif form == output.WIDE:
        output.print_table(WIDE_HEADINGS, (wide_line(row, now) for row in matching))
    else:
        output.print_table(HEADINGS, (line(row, now) for row in matching))
    output.say(trouble)
    click.get_current_context().exit(output.UNREADABLE if trouble else 0)


@group.command("show")
@click.argument("vm")
@click.option("--network", default="", help="Of this network only.")
@store_option
@data_dir_option
@output.output_option(output.TABLE, output.JSON)
@click.pass_obj
def show(place: Place, vm: str, network: str, kind: str | None, data_dir: str, form: str) -> None:
    """Show all that is known of a VM's leases."""
    now = int(time.time())
    everything, trouble = find_rows(place, data_dir, kind or "", network, now)
    output.say(trouble)
    matching = [row for row in everything if row.is_named(vm)]
    if not matching:
        where = "in the cluster" if kind == KUBERNETES else "on this node"
        raise output.CommandRefused(
            f"{vm} has no lease{f' in network {network}' if network else ''} {where}"
        )
    if form == output.JSON:
        output.print_json({"leases": [as_json(row) for row in matching]})
        return
    output.print_each(details(row, now) for row in matching)


@group.command("release")
@click.argument("vm", required=False, default="")
@_of_network
@_interface
@click.option(
    "--stopped-for", default="", metavar="TIME", help="All VMs that have not run for 90s, 10m, 1h, 30d."
)
@click.option(
    "--force", is_flag=True, help="Even from a pod that runs; its guest goes on using the address."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be released.")
@store_option
@data_dir_option
@click.pass_obj
def release(
    place: Place,
    vm: str,
    network: str,
    interface: str,
    stopped_for: str,
    force: bool,
    dry_run: bool,
    kind: str | None,
    data_dir: str,
) -> None:
    """Free the addresses of a VM.

    Or, with --stopped-for, those of all VMs of the network that have not run for so long. A pod that runs
    keeps them, unless you --force it: then nothing is released, and the exit code is 2. A pod of another
    node keeps them in any case, unless both are gone.
    """
    if bool(vm) == bool(stopped_for):
        raise click.UsageError("either VM or --stopped-for says what to release")
    now = int(time.time())
    before = now - as_seconds(stopped_for, "--stopped-for") if stopped_for else now

    def free(ledger: Ledger, store: Store) -> list[str]:
        keys = _long_stopped(ledger, network, before) if stopped_for else _named(ledger, network, vm)
        keys = [key for key in keys if interface in ("", key.interface)]
        if force:
            for key in keys:
                _ensure_may_end(place, store, ledger.get(key))
        return [_freed(ledger, key, force=force, now=now) for key in keys]

    freed: list[str] = []
    stores = find(place, data_dir, kind or "")
    output.say([*stores.gone, *stores.unreadable])
    if vm:
        _ensure_in_one_kind(stores.stores, network, vm)
    for store in stores.stores:
        action = partial(free, store=store)
        freed += store.look(action) if dry_run else store.run(action)
    for text in freed:
        click.echo(f"{'would release' if dry_run else 'released'} {text}")
    if not freed and vm:
        of_interface = f" for its interface {interface}" if interface else ""
        hint = "" if data_dir else f" ({_ELSEWHERE})"
        raise output.CommandRefused(f"{vm} has no lease{of_interface} in network {network}{hint}")
    if not freed:
        click.echo(f"no VM of network {network} has been stopped for {stopped_for}: nothing is released")


@group.command("reserve")
@click.argument("vm")
@_of_network
@click.option("--ip", "ips", multiple=True, required=True, help="An address; again for the other family.")
@click.option("--mac", default="", help="Its MAC.  [default: as its first ADD chooses]")
@click.option("--interface", default="eth0", show_default=True, help="The VM's interface.")
@store_option
@data_dir_option
@click.pass_obj
def reserve(
    place: Place,
    vm: str,
    network: str,
    ips: tuple[str, ...],
    mac: str,
    interface: str,
    kind: str | None,
    data_dir: str,
) -> None:
    """Keep addresses for a VM to come.

    Its first ADD gets them, whatever its UID.
    """
    if not is_name(network):
        reason = "is no name of a network (letters, digits, _, . and -)"
        raise output.CommandRefused(f'--network: "{network[:64]}" {reason}')
    of = identity.written(vm, interface)
    key = LeaseKey(network, of.namespace, of.name, of.interface)
    wanted = tuple(as_address(ip, "--ip") for ip in ips)
    hardware = as_mac(mac, "--mac", unicast=True) if mac else ""
    store = of_network(place, network, data_dir, kind or "")
    now = int(time.time())

    def reserve_it(ledger: Ledger) -> tuple[bool, Lease]:
        is_known = bool(ledger.recorded_pools(network))
        lease = allocator.reserve(
            ledger, key, ips=wanted, mac=hardware, pool=None, now=now, data_dir=data_dir
        )
        return is_known, lease

    is_known, lease = store.run(reserve_it)
    if data_dir not in ("", place.statedir):
        data_dirs.add(place.statedir, data_dir)
    click.echo(f"reserved {described(key)}: {_holdings(lease)}")
    if not is_known:
        text = f"no ADD in network {network} has recorded its ranges in {store.name} yet"
        hint = "" if data_dir else f" ({_ELSEWHERE})"
        warning = f"{text}: nothing says whether they have {ips[0]}{hint}"
        output.say([warning])


@group.command("init")
@click.option("--network", default="", help="The network whose leases were lost, if it has a dataDir.")
@data_dir_option
@click.pass_obj
def init(place: Place, network: str, data_dir: str) -> None:
    """Go on after leases were lost.

    For a store that refuses every ADD because leases.db is gone, where there is no copy to restore. What it
    still has stays. What is attached on this node is taken, as the records and the pods' namespaces say;
    what was kept for VMs that do not run is lost, and may be given to others. All networks of the store
    begin anew together. Exit code 1 when something attached could not be looked at.
    """
    records, unreadable = read_all(place.rundir)
    store = embedded_of_network(place, network, data_dir, records)
    node = place.env.get("CNVNET_NODE", "")
    recovered = recovery.start_over(
        store, records, LinuxKernel(), statedir=place.statedir, node=node, now=int(time.time())
    )
    click.echo(f"{store.name} is in use again: {_recovered(recovered)}")
    problems = [*recovered.problems, *(error.msg for error in unreadable)]
    output.say(problems)
    click.get_current_context().exit(output.PROBLEMS if problems else 0)


def find_rows(place: Place, data_dir: str, kind: str, network: str, now: int) -> tuple[list[Row], list[str]]:
    """The rows of all stores that can be read, and what cannot; a store that cannot hides no other."""
    stores = find(place, data_dir, kind)
    output.say(stores.gone)
    trouble = [*stores.unreadable]
    merged: list[Row] = []
    for store in stores.stores:
        try:
            merged += rows([store], network, now)
        except (CNIError, OSError) as e:
            if len(stores.stores) == 1:
                raise
            trouble.append(output.failure(e).message)
    return sorted(merged, key=lambda row: row.key), trouble


def _named(ledger: Ledger, network: str, name: str) -> list[LeaseKey]:
    """The keys of a VM or a container, from leases and from what is cooling down."""
    both: list[Lease | Cooldown] = [*ledger.leases(network), *ledger.cooldowns(network)]
    keys = sorted({each.key for each in both if is_named(each.key, name)})
    if len({key[:3] for key in keys}) > 1:
        ids = ", ".join(output.short_id(key.vm) for key in keys)
        raise output.CommandRefused(f"{name} is the beginning of several containers' ids: {ids}")
    return keys


def _long_stopped(ledger: Ledger, network: str, before: int) -> list[LeaseKey]:
    return [
        lease.key
        for lease in ledger.leases(network)
        if lease.key.is_vm and not lease.holders and lease.since <= before
    ]


def _ensure_in_one_kind(stores: Sequence[Store], network: str, vm: str) -> None:
    """CommandRefused for a VM that has leases both in the cluster and on this node."""
    if len({isinstance(each, Sqlite) for each in stores}) < 2:
        return
    having = [each for each in stores if each.look(lambda ledger: _named(ledger, network, vm))]
    if len({isinstance(each, Sqlite) for each in having}) > 1:
        names = " and ".join(each.name for each in having)
        raise output.CommandRefused(f"{vm} has leases in {names}: say by --store which are meant")


def _ensure_may_end(place: Place, store: Store, lease: Lease | None) -> None:
    """CommandRefused for a lease of the cluster that a pod of another node may still use. CNIError."""
    directory, node = place.lookup(), node_of(store)
    if lease is None or directory is None or node is None:
        return
    for holder in lease.holders:
        if holder.is_on(node):
            continue
        reason = reason_to_keep(directory.api, holder.pod, holder.pod_uid, holder.node)
        if reason:
            raise output.CommandRefused(
                f"{lease.key} is held by {refusals.user(holder)} on node {holder.node}, and --force takes "
                f"nothing from a pod of another node ({reason}): stop it first"
            )


def _freed(ledger: Ledger, key: LeaseKey, *, force: bool, now: int) -> str:
    """Frees a lease, and says what that was."""
    try:
        lease = allocator.free(ledger, key, force=force, now=now)
    except CNIError as e:
        raise output.CommandRefused(e.msg) from e
    until = max((each.until for each in ledger.cooldowns_of(key)), default=0)
    later = f" (free in {until - now} s)" if until > now else ""
    return f"{described(key)}: {_holdings(lease)}{later}"


def _recovered(recovered: Recovered) -> str:
    if not recovered.leases:
        return "it is empty, nothing on this node has an address of it"
    leases = len(recovered.leases)
    return f"addresses that are attached and therefore taken: {recovered.addresses}, of {leases} leases"


def described(key: LeaseKey) -> str:
    """A lease by its network, VM and interface, as commands name it."""
    return escaped(f"{key.network}/{full_name(key)} {key.interface}")


def _holdings(lease: Lease) -> str:
    return ", ".join([*map(str, lease.ips), *([lease.mac] if lease.mac else [])])
