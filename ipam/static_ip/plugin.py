"""static-ip: ADD, DEL, CHECK, GC and STATUS over the leases of a network.

The executable prints what a CNI result has a place for. A result has none for a MAC address: only callers of
the function `assign`, such as cnv-bridge, get it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cnvnet import call_context
from cnvnet.attachment.rollback import ErrorCollector
from cnvnet.cni import unknown_keys
from cnvnet.cni.conventions import PodRef, valid_attachments
from cnvnet.cni.errors import CheckFailed, CNIError, InvalidConfig
from cnvnet.cni.request import Request
from cnvnet.cni.result import Result, previous
from cnvnet.executables import STATIC_IP
from cnvnet.ipam import allocator
from cnvnet.ipam.allocation import Allocation, AllocationRequest, IsDead
from cnvnet.ipam.static_ip.asked import (
    allocation_request,
    death_test,
    interfaces_beside,
    lease_key,
    lease_owner,
    node_of,
    result_of,
)
from cnvnet.ipam.static_ip.claimed import claimed
from cnvnet.ipam.static_ip.config import (
    Config,
    all_store_refs,
    node,
    release_remark,
    statedir,
    storable,
    store_refs,
)
from cnvnet.ipam.static_ip.identified import identified
from cnvnet.ipam.static_ip.reports import OnEvent, OnRefusal, Reports
from cnvnet.ipam.store.clock import now
from cnvnet.ipam.store.opening import open_kubernetes, open_store
from cnvnet.ipam.store.protocol import LeaseChange, LeasesLost, Ledger, Store, Usage
from cnvnet.ipam.store.ref import KUBERNETES, SQLITE, StoreRef
from cnvnet.vm.identity import TARGET
from cnvnet.vm.launcher import Subject
from cnvnet.vm.subjects import Lookup, no_api, own_lookup, subject_of

if TYPE_CHECKING:
    # Imported where a network has its leases in a cluster.
    from cnvnet.ipam.static_ip.adoption import Adopted
    from cnvnet.ipam.static_ip.claims import ClaimedAddresses
    from cnvnet.ipam.static_ip.switching import Former
    from cnvnet.ipam.store.kubernetes import Drained, KubernetesStore

T = TypeVar("T")


class Assignment(NamedTuple):
    """What an ADD got."""

    result: Result
    # "" where the network gives no MACs.
    mac: str
    # The pod's, see vm.identity.
    role: str
    # What `revert` takes back, and where.
    allocation: Allocation
    store: StoreRef
    # The claim that says so, as it was before.
    claim: ClaimedAddresses | None = None


class StaticIP:
    """The plugin. One object may serve many calls and threads; it keeps the stores it has opened."""

    name = STATIC_IP

    def __init__(
        self,
        open_store: Callable[[StoreRef], Store] = open_store,
        on_refusal: OnRefusal | None = None,
        lookup: Lookup = no_api,
        node_name: str = "",
        new_networks: str = "",
        before_cluster_add: Callable[[str], None] = lambda _: None,
        on_event: OnEvent | None = None,
    ) -> None:
        """`on_refusal` is called for each ADD that gets no address, with the network and the error.

        `before_cluster_add` is called with the network before an ADD asks the cluster's store for addresses;
        it may refuse it by a CNIError. `on_event` is called for what is to be said of addresses in
        Kubernetes, and does not wait.

        `lookup` leads to the Kubernetes API, which knows the VMs of pods. `node_name` is this node's there,
        for calls whose environment does not say it.
        """
        self._open_store = open_store
        self._reports = Reports(on_refusal, on_event)
        self._lookup = lookup
        self._node_name = node_name
        self._new_networks = new_networks
        self._before_cluster_add = before_cluster_add
        self._stores: dict[StoreRef, Store] = {}
        self._clusters: dict[StoreRef, KubernetesStore] = {}
        # Folders that are in the list of their node's usual folder.
        self._listed: set[tuple[str, str]] = set()

    def add(self, request: Request) -> Result:
        """ADD: give the attachment its addresses."""
        config = self.configure(request)
        unknown_keys.report_ipam(request.fields)
        return self.assign(request, config).result

    def delete(self, request: Request) -> None:
        """DEL: end the container's hold."""
        self.release(request)

    def shared_folders(self, request: Request) -> tuple[str, ...]:
        """The folders of the leases."""
        return tuple({folder: None for ref in store_refs(request) for folder in ref.folders})

    def configure(self, request: Request) -> Config:
        """What an ADD's configuration asks for, for which VM. Raises CNIError: 7, of the API 11."""
        with self._reports.adding(request) as known:
            config = Config.parse(request, self._has_api)
            config = config._replace(node=config.node or self._node_name)
            return self._identified(request, config, known)

    def assign(self, request: Request, config: Config | None = None) -> Assignment:
        """The addresses (and the MAC) of the VM's interface; this pod becomes a holder of them.

        `config` is what `configure` has returned, if it was called. Raises CNIError with nothing changed: 7
        for a request that cannot be met, 11 for what may work later, 5 for a store that cannot be used.
        `revert` undoes it.
        """
        config = config or self.configure(request)
        with self._reports.adding(request, config.subject):
            assignment = self._assign(request, config)
        self._reports.allocated(config, assignment.allocation)
        return assignment

    def usage(self, folder: str, now: int) -> Iterator[Usage]:
        """The counts of all networks in the store of `folder`, in those that it lists and that calls use.

        Raises CNIError once all stores that can be read have been. No call waits for it.
        """
        from cnvnet.ipam.static_ip.folder_usage import usage_of

        used = [each.location for each in list(self._stores) if each.kind == SQLITE]
        return usage_of(folder, used, now)

    def drain(self, statedir: str) -> Drained | None:
        """Write to the cluster's store what could not be written before; see `KubernetesStore.drain`.

        None where pods of this node hold nothing there, or there is no way to it.
        """
        store = self.cluster_with_holds(statedir)
        return store.drain() if store is not None else None

    def cluster_with_holds(self, statedir: str) -> KubernetesStore | None:
        """The cluster's store, None where pods of this node hold nothing in it or there is no way to it."""
        where = StoreRef(KUBERNETES, statedir)
        store = self._cluster(where) if where.has_holds else None
        return store if store is not None and store.is_connected else None

    def adopt(self, statedir: str, rundir: str) -> Adopted | None:
        """Make this node's leases the cluster's whose networks are; see `adoption`. CNIError.

        None where there is no way to the cluster.
        """
        directory = self._lookup()
        if directory is None:
            return None
        from cnvnet.ipam.static_ip.adoption import Adoption

        store = self._cluster(StoreRef(KUBERNETES, statedir))
        return Adoption(store, directory, statedir=statedir, rundir=rundir, clock=now).run()

    def _identified(self, request: Request, config: Config, known: list[Subject]) -> Config:
        subject = subject_of(config.claim, request, self._lookup)
        if subject is not None:
            known.append(subject)
            config = identified(config, subject, partial(interfaces_beside, request))
            return claimed(config, subject, request, self._lookup)
        if config.pod is not None and config.store.kind == KUBERNETES:
            config = config._replace(node=self._node_of(config.pod, request) or config.node)
        remark = release_remark(config)
        # Most calls have no remark, and need not look for credentials.
        if not remark or self._lookup() is not None:
            return config
        return config._replace(remarks=(remark, *config.remarks))

    def _node_of(self, pod: PodRef, request: Request) -> str:
        """The pod's node as the API has it: an executable knows no other way what its node is called."""
        directory = self._lookup()
        return "" if directory is None else directory.node(pod, container_id=request.container_id)

    def _assign(self, request: Request, config: Config) -> Assignment:
        wanted = allocation_request(request, config)
        is_dead = death_test(config.node, wanted.holder.boot_id)
        store, claim = self._store_for(config), config.ipam_claim
        former: Former | None = None

        def allocate(ledger: Ledger) -> tuple[Allocation, Result]:
            if former is not None:
                former.adopt(ledger, wanted.now)
            allocation = allocator.acquire(ledger, wanted, is_dead)
            # Inside, so that a result that cannot be given leaves nothing.
            return allocation, result_of(allocation.lease, config)

        if config.store.kind == KUBERNETES:
            self._before_cluster_add(request.name)
        try:
            with _of_network(request.name):
                former = self._former(request, config, wanted, is_dead, store)
                allocation, result = store.run(allocate)
        except CNIError as e:
            if claim is not None:
                claim.refuse(e)
            self._declare(request, config)
            raise
        if former is not None:
            former.end(store, wanted.now)
        self._ensure_listed(statedir(request.env), config.store.location)
        for remark in (*config.remarks, *allocation.remarks):
            call_context.log(remark)
        holder = allocation.lease.holder(request.container_id, storable(request.ifname))
        role = holder.role if holder is not None else wanted.holder.role
        assignment = Assignment(result, allocation.lease.mac, role, allocation, config.store, claim)
        if claim is not None:
            self._report(request, assignment, claim)
        return assignment

    def _former(
        self, request: Request, config: Config, wanted: AllocationRequest, is_dead: IsDead, store: Store
    ) -> Former | None:
        """What the VM has in the other kind of store, if its network had its leases there. CNIError."""
        cluster = StoreRef(KUBERNETES, statedir(request.env))
        subject, is_elsewhere = config.subject, config.store.kind == SQLITE
        if subject is None or (is_elsewhere and not cluster.has_served(request.name)):
            return None
        from cnvnet.ipam.static_ip.switching import Switch

        switch = Switch(wanted, is_dead, subject.role)
        if not is_elsewhere:
            return switch.from_folders(store, self._store, cluster.location)
        former = self._cluster(cluster)
        return switch.from_cluster(store, former, subject.node or config.node or former.node)

    def _declare(self, request: Request, config: Config) -> None:
        """Make the network known: the node of a target's source then hands its leases over."""
        if config.store.kind != KUBERNETES or config.holder_role != TARGET or config.pod is None:
            return
        try:
            self._cluster(config.store).declare(request.name, config.pod.namespace)
        except CNIError as e:
            call_context.log(e.msg)

    def _report(self, request: Request, assignment: Assignment, claim: ClaimedAddresses) -> None:
        try:
            claim.report(each.address for each in assignment.result.ips)
        except CNIError:
            self.revert(request, assignment)
            raise

    def _ensure_listed(self, usual: str, where: str) -> None:
        """Leases that are not in the usual folder are found there all the same, without a VM that runs."""
        if where == usual or (usual, where) in self._listed:
            return
        # Only networks with a dataDir pay for it.
        from cnvnet.ipam.store import data_dirs

        try:
            data_dirs.add(usual, where)
        except OSError as e:
            # That /var cannot be written may be why the network has a dataDir.
            text = f"{data_dirs.path(usual)}: {(e.strerror or str(e)).lower()}"
            call_context.log(f"{text}: cnvctl finds the leases in {where} by --data-dir {where} only")
        else:
            self._listed.add((usual, where))

    def revert(self, request: Request, assignment: Assignment) -> None:
        """Undo `assign` because the ADD it was for came to nothing: the lease is as it was before."""
        interface, moment = (request.container_id, storable(request.ifname)), now()
        with call_context.taking_back():
            self._run(
                request,
                assignment.store,
                lambda ledger: allocator.revert(ledger, assignment.allocation, *interface, now=moment),
            )
            if assignment.claim is not None:
                assignment.claim.take_back()

    def release(self, request: Request, recorded: StoreRef | None = None) -> None:
        """This pod holds nothing any more. Needs no identity, no valid configuration and no earlier ADD.

        `recorded` is where the ADD has put the lease, if a record says so: the default may have changed. So
        may the network's store, which has taken the lease over then.
        """
        has_released = False
        errors: dict[StoreRef, CNIError] = {}
        for where in all_store_refs(request, recorded):
            try:
                has_released |= self._release(request, where)
            except CNIError as e:
                errors[where] = e
        error = errors.get(recorded) if recorded is not None else next(iter(errors.values()), None)
        if error is not None and not has_released:
            raise error
        # The interface had its addresses in one store: a damaged other one must not keep the pod.
        for each in errors.values():
            call_context.log(each.msg)

    def _release(self, request: Request, where: StoreRef) -> bool:
        """Whether the store knew the interface."""
        interface, moment = (request.name, request.container_id, storable(request.ifname)), now()
        try:
            with _of_network(request.name):
                if not self._store(where).knows(*interface):
                    return False
            self._end(request, where, lambda ledger: allocator.release(ledger, *interface, now=moment))
        except LeasesLost as e:
            # What it held is lost with the rest, and a DEL that fails would keep the pod for ever.
            call_context.log(f"{e.msg}; nothing was released")
            return False
        return True

    def check(self, request: Request, recorded: StoreRef | None = None) -> None:
        """Code 100 unless this pod holds a lease, and with the addresses of prevResult.

        `recorded` is where the ADD has put the lease, if a record says so.
        """
        config = Config.parse(request, self._has_api)
        result = previous(request)
        if result is None:
            raise InvalidConfig("prevResult: required by CHECK")
        interface = (request.name, request.container_id, storable(request.ifname))
        lease = None
        for where in all_store_refs(request, recorded or config.store):
            with _of_network(request.name):
                lease = lease or self._store(where).look(lambda ledger: ledger.held_by(*interface))
        # What the ADD has taken a Kubernetes pod for is in the lease alone: CHECK needs no API.
        if lease is None or (config.pod is None and lease.key != lease_key(request, config)):
            raise CheckFailed(f"network {request.name}: no lease for container {request.container_id}")
        added = {ip.address.ip for ip in result.ips}
        for ip in lease.ips:
            if ip not in added:
                listed = ", ".join(str(each) for each in sorted(added, key=str)) or "no address"
                raise CheckFailed(f"prevResult.ips: {lease.key} has {ip}, not {listed}")

    def gc(self, request: Request, recorded: StoreRef | None = None) -> None:
        """End what containers hold that are no more. A VM keeps its addresses all the same.

        `recorded` is one of the network's stores, as a record has it.
        """
        valid = valid_attachments(request.fields)
        if valid is None:
            return
        collector = ErrorCollector()
        for where in (recorded,) if recorded is not None else store_refs(request):
            collector.attempt("leases", self._collect, request, where, valid)
        collector.raise_first()

    def _collect(self, request: Request, where: StoreRef, valid: set[tuple[str, str]]) -> None:
        here, moment = node(request) or self._node_name, now()
        with _of_network(request.name):
            store = self._store(where)
            # Looking makes no store where none was.
            if not store.look(lambda ledger: any(ledger.held_leases(request.name))):
                return
        if where.kind == KUBERNETES and not here:
            here = self._cluster(where).node
        self._end(
            request,
            where,
            lambda ledger: allocator.collect(ledger, request.name, valid, node=here, now=moment),
        )

    def _end(self, request: Request, where: StoreRef, action: Callable[[Ledger], None]) -> None:
        """Run what ends holds, and say what that has freed."""

        def end(ledger: Ledger) -> tuple[LeaseChange, ...]:
            action(ledger)
            return tuple(ledger.changes)

        self._reports.ended(self._run(request, where, end))

    def status(self, request: Request) -> None:
        """Code 50 if an ADD could not write the store.

        A full pool is nothing that the node lacks: a runtime that asks for STATUS would call it not ready.
        """
        self._store(Config.parse(request, self._has_api).store).ready()

    def _has_api(self) -> bool:
        return self._lookup() is not None

    def _store_for(self, config: Config) -> Store:
        """The store of an ADD, which in a cluster knows whose the lease is and which node this is."""
        if config.store.kind != KUBERNETES:
            return self._store(config.store)
        return self._cluster(config.store).for_call(lease_owner(config), node_of(config))

    def _cluster(self, where: StoreRef) -> KubernetesStore:
        """The store of the cluster; kept once there is a way to its API."""
        store = self._clusters.get(where)
        if store is None:
            store = open_kubernetes(where, self._lookup, self._node_name, self._new_networks)
            if store.is_connected:
                store = self._clusters.setdefault(where, store)
        return store

    def _store(self, where: StoreRef) -> Store:
        if where.kind == KUBERNETES:
            return self._cluster(where)
        store = self._stores.get(where)
        if store is None:
            # Two threads may come here at once; both use the store that the first of them has put there.
            store = self._stores.setdefault(where, self._open_store(where))
        return store

    def _run(self, request: Request, where: StoreRef, action: Callable[[Ledger], T]) -> T:
        with _of_network(request.name):
            return self._store(where).run(action)


def load(env: Mapping[str, str], static_ip: StaticIP | None = None) -> StaticIP:
    """The plugin for a caller with this environment; a process that stays gives the one it has."""
    return static_ip or StaticIP(lookup=own_lookup(env))


@contextmanager
def _of_network(name: str) -> Generator[None]:
    """An error about lost leases names the network of the call."""
    try:
        yield
    except LeasesLost as e:
        raise e.of(name) from e
