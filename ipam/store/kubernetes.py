"""The leases of a cluster as objects of its Kubernetes API: a Store.

A run is repeated until nothing of what its action has guessed was wrong. Conflicts with other nodes are
settled here and nowhere else; requests that are lost, refused for now or unanswered are the client's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from cnvnet.cni.errors import NOT_AVAILABLE, TRY_AGAIN_LATER, CNIError
from cnvnet.ipam import allocator
from cnvnet.ipam.lease import Cooldown
from cnvnet.ipam.store import holds
from cnvnet.ipam.store.clock import now
from cnvnet.ipam.store.holds import Hold, Holds
from cnvnet.ipam.store.kubernetes_abandoned import AbandonedHolds
from cnvnet.ipam.store.kubernetes_commit import Commit
from cnvnet.ipam.store.kubernetes_comparison import EVERYTHING, Compared, Comparison, Remake
from cnvnet.ipam.store.kubernetes_facts import Facts, TakenAddresses
from cnvnet.ipam.store.kubernetes_ledger import KubernetesLedger
from cnvnet.ipam.store.kubernetes_networks import NAMESPACE, NetworkRegistry
from cnvnet.ipam.store.kubernetes_reservations import TryAgain
from cnvnet.ipam.store.kubernetes_survey import KnownPools, LeaseSurvey
from cnvnet.ipam.store.lease_owner import LeaseOwner
from cnvnet.ipam.store.no_api import NoApi
from cnvnet.ipam.store.protocol import Ledger
from cnvnet.kube.api import Api, ApiError, deadline

T = TypeVar("T")


class Drained(NamedTuple):
    """What `drain` has written to the API, and why it could not write the rest."""

    done: tuple[Hold, ...]
    left: tuple[str, ...]


# Seconds that a run may take, before it takes back what it has written.
RUN_SECONDS: Final = 10.0
# Seconds for one hold of the queue, which is tried again. After so many in a row without an answer the rest
# waits for the next look: one hold alone may be the reason, and must keep no other from being released.
_DRAIN_SECONDS: Final = 5.0
_UNANSWERED: Final = 2
# Attempts of a run. Every one that fails means that another node's has succeeded: what ends a run in a crowd
# is its deadline, and this number what would never end.
_ATTEMPTS: Final = 64
# Seconds of the longest pause between two attempts.
_LONGEST_PAUSE: Final = 0.1


class KubernetesStore:
    """The leases of a cluster, for one node. One object may serve all threads of a process."""

    def __init__(
        self,
        api: Api,
        held: Holds,
        node: str,
        *,
        new_networks: str = NAMESPACE,
        owner: LeaseOwner | None = None,
        clock: Callable[[], int] = now,
    ) -> None:
        """`node` is the Kubernetes node's name; `new_networks` one of kubernetes_networks.NEW_NETWORKS."""
        self.name = api.server
        self._api = api
        self._holds = held
        self._node = node
        self._owner = owner
        self._clock = clock
        self._networks = NetworkRegistry(api, new_networks)
        self._taken = TakenAddresses()
        self._pools = KnownPools(held.statedir)
        self._over: dict[str, int] = {}
        self._abandoned = AbandonedHolds(api, held)

    def for_call(self, owner: LeaseOwner | None, node: str = "") -> KubernetesStore:
        """This store for one call: the lease that it makes goes when this object goes.

        `node` is this node's name where the call knows it better.
        """
        other = KubernetesStore.__new__(KubernetesStore)
        other.__dict__.update(self.__dict__, _owner=owner, _node=node or self._node)
        return other

    @property
    def networks(self) -> NetworkRegistry:
        """The IPNetworks of the cluster."""
        return self._networks

    @property
    def is_connected(self) -> bool:
        """Whether there is a way to the API."""
        return not isinstance(self._api, NoApi)

    @property
    def node(self) -> str:
        """This node's name; where the process does not know it, as the pods have it that are here."""
        if self._node:
            return self._node
        holders = (each.holder for each in self._holds.all())
        return next((each.node for each in holders if each is not None and each.node), "")

    def run(self, action: Callable[[Ledger], T], /) -> T:
        """Run the action on what is known until all of that was right, and store its changes. CNIError."""
        return self._run(action)

    def _run(self, action: Callable[[Ledger], T], *, remade: bool = False) -> T:
        facts = Facts(self._api, self._taken)
        commit = self._commit(facts, remade=remade)
        try:
            with deadline(RUN_SECONDS):
                return self._attempt(action, facts, commit)
        except BaseException as e:
            commit.undo(e)
            raise
        finally:
            commit.close()

    def look(self, action: Callable[[Ledger], T], /) -> T:
        """Run an action on what the API says, and forget its changes. CNIError."""
        with deadline(RUN_SECONDS):
            return action(self._ledger(Facts(self._api, self._taken), exact=True))

    def knows(self, network: str, container_id: str, ifname: str) -> bool:
        """Whether there is a hold file of the interface. CNIError 5."""
        hold = self._holds.get(network, container_id, ifname)
        return hold is not None and hold.state != holds.COOLING

    def ready(self) -> None:
        """CNIError 50 if this node could not write its hold files, or has no credentials for the API.

        The API server is not asked.
        """
        if isinstance(self._api, NoApi):
            raise CNIError(NOT_AVAILABLE, self._api.why)
        self._holds.ensure_writable()

    def _attempt(self, action: Callable[[Ledger], T], facts: Facts, commit: Commit) -> T:
        exact = False
        for attempt in range(_ATTEMPTS):
            ledger = self._ledger(facts, exact=exact)
            try:
                value = action(ledger)
            except TryAgain:
                time.sleep(_LONGEST_PAUSE)
                continue
            if not ledger.works and not ledger.confirmed and ledger.has_guessed and not exact:
                # No commit will find out what was guessed.
                exact = True
                continue
            try:
                commit.apply(ledger)
            except TryAgain:
                time.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.001 * 2**attempt)))
                continue
            for network, pool in ledger.pools.items():
                self._pools.write(network, pool)
            self._over.update(ledger.over)
            return value
        raise CNIError(
            TRY_AGAIN_LATER,
            f"{self.name}: other calls have changed the same leases {_ATTEMPTS} times: try again",
        )

    def _ledger(self, facts: Facts, *, exact: bool) -> KubernetesLedger:
        survey = LeaseSurvey(self._api, self._pools)
        return KubernetesLedger(facts, self._holds, exact=exact, over=self._over, survey=survey)

    def _commit(self, facts: Facts, *, remade: bool = False) -> Commit:
        return Commit(
            self._api,
            facts,
            self._holds,
            self._networks,
            node=self._node,
            owner=self._owner,
            clock=self._clock,
            remade=remade,
        )

    def declare(self, network: str, namespace: str) -> None:
        """Make a network's IPNetwork, as a lease of this namespace would. CNIError."""
        with deadline(RUN_SECONDS):
            self._networks.ensure_admitted(network, namespace, None, ())

    # -- for the agent, at every connection to the API

    def compare(self, boot_id: str, *, network: str | None = None, scope: str = EVERYTHING) -> Compared:
        """Make again what pods of this boot have and the API has lost; see `Comparison`. CNIError 5."""
        comparison = Comparison(
            self._api, self._holds, Remake(self._remake, self._taken, self.node), boot_id=boot_id
        )
        return comparison.run(network=network, scope=scope)

    def _remake(self, action: Callable[[Ledger], None], owner: LeaseOwner | None) -> None:
        self.for_call(owner, self.node)._run(action, remade=True)

    def drain(self) -> Drained:
        """Write to the API what DEL and GC could not, and end what an ADD has left that was killed.

        What a pod has left that ended without a DEL ends, too; an address that has cooled down is freed.
        Errors of the API end nothing else: what remains is counted, and worked through with the next call.
        """
        done: list[Hold] = []
        left: list[str] = []
        try:
            with deadline(_DRAIN_SECONDS):
                self._abandoned.release()
        except ApiError as e:
            left.append(str(e))
        unanswered = 0
        for hold in self._holds.all():
            # Calls go on meanwhile: what was found may be another one's by now.
            claimed = self._holds.claim(hold) if self._is_due(hold) else None
            if claimed is None:
                continue
            try:
                if unanswered >= _UNANSWERED:
                    left.append(f"{hold.lease.key}: waits, as {self.name} does not answer")
                    continue
                self._finish(claimed.hold)
                done.append(claimed.hold)
                unanswered = 0
            except CNIError as e:
                left.append(f"{hold.lease.key}: {e}")
                unanswered = unanswered + 1 if isinstance(e, ApiError) and not e.status else 0
            except TryAgain:
                left.append(f"{hold.lease.key}: its lease changes while it is released")
            except Exception as e:  # noqa: BLE001 -- one odd object must not keep others from being released
                left.append(f"{hold.lease.key}: {type(e).__name__}: {e}")
            finally:
                claimed.close()
        return Drained(tuple(done), tuple(left))

    def _is_due(self, hold: Hold) -> bool:
        if hold.state == holds.HELD:
            return bool(hold.addresses)
        if hold.state == holds.COOLING:
            return hold.until <= self._clock()
        return True

    def _finish(self, hold: Hold) -> None:
        commit = self._commit(Facts(self._api, self._taken))
        with deadline(_DRAIN_SECONDS):
            if hold.state == holds.HELD:
                commit.endings.tidy(hold)
                self._holds.replace(hold, hold._replace(addresses=()))
                return
            if hold.state == holds.COOLING or not hold.lease.key.is_vm:
                commit.endings.end_pods(hold.lease.key, [hold], self._cooldowns_of(hold))
            else:
                self._end_holder(hold)
                commit.endings.tidy(hold)
                # An ADD may have been killed taking its lease back.
                commit.endings.end_if_marked(hold)
            self._holds.remove(hold)

    def _cooldowns_of(self, hold: Hold) -> tuple[Cooldown, ...]:
        """What a pod that is no VM leaves behind: when its DEL came is not known, so they begin now."""
        lease, now = hold.lease, self._clock()
        # No guest has used what a killed ADD had.
        if hold.state == holds.COOLING or hold.ends or not lease.cooldown:
            return ()
        until = now + lease.cooldown
        return tuple(Cooldown(lease.key, ip, lease.mac, lease.vm_uid, until, now) for ip in lease.ips)

    def _end_holder(self, hold: Hold) -> None:
        """End a holder of a VM's lease by what the API says of it."""
        key, moment = hold.lease.key, self._clock()

        def end(ledger: Ledger) -> None:
            now = self._holds.get(*hold.interface)
            if now is None or now.state != holds.RELEASING:
                return  # an ADD has come since
            lease = ledger.get(key)
            if lease is not None and lease.holder(hold.container_id, hold.ifname) is not None:
                allocator.end_hold(ledger, lease, hold.container_id, hold.ifname, now=moment)

        self.run(end)
