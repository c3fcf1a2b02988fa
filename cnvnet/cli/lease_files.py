"""cnvctl leases export and import: leases as files, and what other address managers have given."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Final

import click

from cnvnet.attachment.files import read_all
from cnvnet.cli import output
from cnvnet.cli.leases import data_dir_option, described, find_rows, store_option
from cnvnet.cli.place import Place
from cnvnet.cli.stores import cluster_networks, known_machines, of_network
from cnvnet.cni.errors import CNIError
from cnvnet.cni.fields import Address
from cnvnet.ipam.imports import documents, sources
from cnvnet.ipam.imports.carry_out import carry_out
from cnvnet.ipam.imports.documents import Document
from cnvnet.ipam.imports.gather import gather
from cnvnet.ipam.imports.plan import ImportPlan, plan
from cnvnet.ipam.imports.sources import Given
from cnvnet.ipam.lease import Lease
from cnvnet.ipam.store import convert, data_dirs
from cnvnet.ipam.store.protocol import Store
from cnvnet.kernel import regular_file
from cnvnet.kube.resources import KUBE_OVN_IPS, WHEREABOUTS_POOLS, Resource

# Leases that one run of the cluster's store makes: it has ten seconds.
_AT_ONCE: Final = 50
_FROM: Final = {"whereabouts": WHEREABOUTS_POOLS, "kube-ovn": KUBE_OVN_IPS}
# Bytes of one file that a folder of host-local has: a container's id and an interface.
_LONGEST_FILE: Final = 4096


@click.command("export")
@click.option("--network", default="", help="Of this network only.")
@store_option
@data_dir_option
@click.pass_obj
def export(place: Place, network: str, kind: str | None, data_dir: str) -> None:
    """Print the leases of VMs, one a line, for `cnvctl leases import`.

    What containers have that are no VMs ends with them, and is left out, as is what cools down.
    """
    rows, trouble = find_rows(place, data_dir, kind or "", network, int(time.time()))
    leases = [row.of for row in rows if isinstance(row.of, Lease)]
    for lease in leases:
        if lease.key.is_vm:
            click.echo(convert.as_line(lease))
    left_out = sum(not each.key.is_vm for each in leases)
    output.say([f"left out, of containers that are no VMs: {left_out}"] if left_out else [])
    output.say(trouble)
    click.get_current_context().exit(output.UNREADABLE if trouble else 0)


@click.command("import")
@click.argument("files", nargs=-1, metavar="FILE...", type=click.Path(allow_dash=True))
@click.option("--from", "manager", type=click.Choice(tuple(_FROM)), help="What this manager has in the API.")
@click.option("--network", default="", help="The network's name here, where the files do not say it.")
@click.option("--interface", default="eth0", show_default=True, help="The VMs', where they do not say it.")
@click.option("--dry-run", is_flag=True, help="Only say what would be imported.")
@store_option
@data_dir_option
@click.pass_obj
def import_(
    place: Place,
    files: tuple[str, ...],
    manager: str | None,
    network: str,
    interface: str,
    dry_run: bool,
    kind: str | None,
    data_dir: str,
) -> None:
    """Take over leases from files, or what another address manager has given to VMs.

    FILE is what `cnvctl leases export` has printed, VMLeases, whereabouts' IPPools or Kube-OVN's IPs as
    `kubectl get -o yaml` prints them (with pods and instances beside them, where there is no API to ask), or
    a folder of host-local. All of a network is imported, or, with exit code 2, nothing. Exit code 1: some
    addresses were left out.
    """
    if not files and not manager:
        raise click.UsageError("either FILE or --from says what to import")
    now = int(time.time())
    directory = place.lookup()
    read = [each for file in files if not _is_folder(file) for each in _documents(file)]
    if manager:
        if directory is None:
            raise output.Unreadable(
                f"--from {manager}: no credentials for the Kubernetes API (--kubeconfig)"
            )
        read += _listed(directory.api.list(_FROM[manager]).items, _FROM[manager])
    folders = [each for file in files if _is_folder(file) for each in _host_local(file, network)]
    gathered = gather(
        read,
        folders,
        network=network,
        interface=interface,
        records=read_all(place.rundir)[0],
        api=directory.api if directory is not None else None,
        now=now,
    )
    output.say(gathered.left_out)
    refused = False
    for name in sorted({lease.key.network for lease in gathered.leases}):
        leases = [lease for lease in gathered.leases if lease.key.network == name]
        store = of_network(place, name, data_dir, kind or "")
        refused |= not _import_network(place, store, name, leases, data_dir, now=now, dry_run=dry_run)
    if not gathered.leases:
        click.echo("nothing to import")
    code = output.REFUSED if refused else output.PROBLEMS if gathered.left_out else 0
    click.get_current_context().exit(code)


def _import_network(
    place: Place, store: Store, network: str, leases: list[Lease], data_dir: str, *, now: int, dry_run: bool
) -> bool:
    """Whether the network's leases are imported, or would be."""
    networks = cluster_networks(store)
    if networks is not None:
        # A lease that names a VM that is not there would be freed with it.
        there = known_machines(place)
        leases = [each if each.vm_uid in there else each._replace(vm_uid="") for each in leases]
    planned: ImportPlan = store.look(lambda ledger: plan(ledger, network, leases, now))
    conflicts, missing = list(planned.conflicts), False
    namespaces = sorted({each.key.namespace for each in planned.new})
    if networks is not None and planned.new:
        refusals = networks.refusals(network, _by_namespace(planned.new))
        missing = refusals is None
        conflicts += refusals or []
    if conflicts:
        output.say(f"network {network}: {each}" for each in conflicts)
        output.say([f"network {network}: nothing is imported"])
        return False
    if missing:
        click.echo(f"{_would(dry_run, 'make')} the IPNetwork of {network} for {', '.join(namespaces)}")
    if not dry_run:
        if missing and networks is not None:
            networks.make(network, namespaces)
        at_once = _AT_ONCE if networks is not None else max(len(planned.new), 1)
        carry_out(store, planned.new, origin="the import", now=now, at_once=at_once)
        if planned.new and data_dir not in ("", place.statedir):
            data_dirs.add(place.statedir, data_dir)
    for lease in planned.new:
        click.echo(f"{_would(dry_run, 'import')} {described(lease.key)}: {_holdings(lease)}")
    total = f"{_would(dry_run, 'import')} {len(planned.new)}, there already {len(planned.known)}"
    click.echo(f"network {network}: {total}")
    return True


def _would(dry_run: bool, verb: str) -> str:
    past = {"make": "made", "import": "imported"}
    return f"would {verb}" if dry_run else past[verb]


def _holdings(lease: Lease) -> str:
    return ", ".join(filter(None, (*map(str, lease.ips), lease.mac)))


def _by_namespace(leases: Sequence[Lease]) -> list[tuple[str, list[Address]]]:
    return [
        (namespace, [ip for each in leases if each.key.namespace == namespace for ip in each.ips])
        for namespace in sorted({each.key.namespace for each in leases})
    ]


def _is_folder(file: str) -> bool:
    return file != "-" and os.path.isdir(file)


def _documents(file: str) -> list[Document]:
    if file == "-":
        return documents.parse(sys.stdin.read(), "stdin")
    with open(file, encoding="utf-8") as opened:
        try:
            return documents.parse(opened.read(), file)
        except UnicodeDecodeError as e:
            raise output.CommandRefused(f"{file}: no text in UTF-8") from e


def _listed(items: Sequence[dict[str, object]], resource: Resource) -> list[Document]:
    """Objects of a list, which do not say themselves of what kind they are."""
    named = {"apiVersion": resource.api_version, "kind": resource.kind}
    return [Document({**each, **named}, f"{resource.kind} {number}") for number, each in enumerate(items, 1)]


def _host_local(folder: str, network: str) -> list[Given]:
    """What a folder of host-local says; it is called as its network."""
    contents: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        place = os.open(os.path.join(folder, name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            contents[name] = regular_file.read(place, _LONGEST_FILE).decode(errors="replace")
        except OSError as e:
            raise CNIError(5, f"{folder}/{name}: {(e.strerror or str(e)).lower()}") from e
        finally:
            os.close(place)
    called = network or os.path.basename(os.path.abspath(folder))
    return list(sources.host_local(contents, called, folder))
