"""Compares what this node's pods hold with the Kubernetes API, at each connection to it and now and then.

An API that comes back may have been restored from a backup, and a node that comes back may have been
declared lost meanwhile. Until the holds of a network have been compared, no ADD of it gets an address: what
the API has lost would be given away.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from cnvnet.call_context import waiting
from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError
from cnvnet.ipam.store.holds import Hold
from cnvnet.kernel.boot import boot_id
from cnvnet.kube.api import deadline
from cnvnet.kube.events import NORMAL, WARNING, InvolvedObject, KubernetesEvent
from cnvnet.kube.resources import IP_NETWORKS, PODS
from cnvnet.resident import log

if TYPE_CHECKING:
    from cnvnet.ipam.store.kubernetes import KubernetesStore
    from cnvnet.ipam.store.kubernetes_comparison import Compared, Finding
    from cnvnet.kube.api import Api, Document

# Seconds between two looks while something is open: an API that does not answer, a dispute.
_SOON: Final = 5.0
# Seconds between two looks at all leases while the connection stands.
_PERIOD: Final = 300.0
# Seconds that an ADD waits for a look: it has ten in all.
_PATIENCE: Final = 6.0
# Seconds for which a look counts while no connection is watched.
_TRUSTED: Final = 5.0
# As `KubernetesStore.compare` has them; imported with the API's client alone.
_EVERYTHING: Final = "everything"
_LEASES: Final = "leases"
_DISPUTES: Final = "disputes"
_SAID: Final = {
    "remade": "missing in the Kubernetes API, and made again",
    "fenced": "address is another one's: the pod is fenced",
    "disputed": "address is another one's, too",
    "opened": "address is the pod's again: it is fenced no more",
}


# What programs know the events by.
_REASONS: Final = {
    "remade": "AddressRestored",
    "fenced": "AddressFenced",
    "disputed": "AddressDisputed",
    "opened": "AddressUnfenced",
}


class _Moment(NamedTuple):
    """When a look has begun: in which connection, and on `time.monotonic`'s clock."""

    connection: int
    time: float


_NEVER: Final = _Moment(0, 0.0)


class Compare(Protocol):
    """static-ip's look at the holds of a network, None for all; None without an API. CNIError."""

    def __call__(self, *, network: str | None, scope: str) -> Compared | None:
        """Compare. `scope` is one of kubernetes_comparison.SCOPES."""
        ...


def compare_in(find_store: Callable[[], KubernetesStore | None]) -> Compare:
    """Compares in the cluster's store, once there is one."""

    def compare(*, network: str | None, scope: str) -> Compared | None:
        store = find_store()
        return store.compare(boot_id(), network=network, scope=scope) if store is not None else None

    return compare


class LeaseComparison:
    """The thread. `ensure_compared` is for workers that run ADDs."""

    def __init__(
        self,
        compare: Compare,
        disputed: Callable[[], Iterable[Hold]],
        fence: Callable[[], object],
        find_api: Callable[[], Api | None],
        *,
        put_event: Callable[[KubernetesEvent], None] = lambda _: None,
        soon: float = _SOON,
        period: float = _PERIOD,
    ) -> None:
        """Made by the agent.

        Args:
            compare: Compares, and writes to the API what it has lost.
            disputed: The holds of this node whose addresses are another one's.
            fence: Makes the node's fences what the holds say. CNIError, OSError.
            find_api: The API whose connection is watched, None as long as there is none. CNIError.
            put_event: Takes what is said of pods.
            soon: Seconds between looks while something is open.
            period: Seconds between two looks at all.
        """
        self._compare = compare
        self._disputed = disputed
        self._fence = fence
        self._find_api = find_api
        self._put_event = put_event
        self._soon, self._period = soon, period
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = threading.Event()
        # Counts the connections to the API, and whether there is one that is watched.
        self._connection = 1
        self._is_watched = False
        # When all holds, or those of a network, were last compared.
        self._compared = _NEVER
        self._networks: dict[str, _Moment] = {}
        # What could not be compared, which is tried again soon, and said once.
        self._left: frozenset[str] = frozenset()
        self._trouble = ""
        self._watches: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="lease-comparison", daemon=True)

    def start(self) -> None:
        """Begin at once: with the first connection of this process."""
        self._thread.start()

    def stop(self) -> None:
        """End it; a request that is under way ends with the process."""
        self._ended.set()
        self._wake.set()
        for stop in self._watches:
            stop()

    def ensure_compared(self, network: str) -> None:
        """Returns when the network's holds have been compared in this connection. CNIError 11."""
        if self.is_compared(network):
            return
        with waiting():
            is_mine = self._lock.acquire(timeout=_PATIENCE)
        if not is_mine:
            raise CNIError(TRY_AGAIN_LATER, self._still_comparing())
        try:
            if not self.is_compared(network):
                with deadline(_PATIENCE):
                    absent = self._look(network, _EVERYTHING)
                if absent:
                    raise CNIError(TRY_AGAIN_LATER, absent)
        finally:
            self._lock.release()

    def _still_comparing(self) -> str:
        api = self._find_api()
        where = f" at {api.server}" if api is not None else ""
        why = f" ({self._trouble})" if self._trouble else ""
        return f"what this node's pods hold is still compared with the Kubernetes API{where}: try again{why}"

    def counts(self) -> Counter[tuple[str, str]]:
        """How many interfaces have a dispute, by their state (fenced, open) and network. CNIError."""
        return Counter(("fenced" if each.fenced else "open", each.network) for each in self._disputed())

    def is_compared(self, network: str) -> bool:
        """Whether the network's holds were compared in this connection."""
        last = max(self._compared, self._networks.get(network, _NEVER))
        if last.connection != self._connection:
            return False
        # While no connection is watched, nothing tells when the API has been away since.
        return self._is_watched or time.monotonic() - last.time < _TRUSTED

    def _run(self) -> None:
        since = 0.0
        while not self._ended.is_set():
            self._wake.clear()
            self._watch()
            is_whole = self._compared.connection != self._connection or since >= self._period
            self.work(whole=is_whole)
            since = 0.0 if is_whole else since + self._soon
            self._wake.wait(self._soon * random.uniform(0.8, 1))

    def work(self, *, whole: bool) -> None:
        """One look: at all holds, or at the disputed ones."""
        try:
            with self._lock:
                scope = self._scope(whole=whole)
                if scope == _DISPUTES and not any(True for _ in self._disputed()):
                    self._fence()
                    return
                self._report(self._look(None, scope))
        except (CNIError, OSError) as e:
            self._report(e.msg if isinstance(e, CNIError) else str(e))
        except Exception as e:  # noqa: BLE001 -- what one look meets must not end all later ones
            log.crash("internal error of the thread that compares leases")
            self._report(f"{type(e).__name__}: {e}")

    def _scope(self, *, whole: bool) -> str:
        if self._compared.connection != self._connection or self._left:
            return _EVERYTHING
        return _LEASES if whole else _DISPUTES

    def _look(self, network: str | None, scope: str) -> str:
        """Compares; why the API cannot be asked, "" if it was. With the lock held."""
        moment = _Moment(self._connection, time.monotonic())
        compared = self._compare(network=network, scope=scope)
        if compared is not None:
            for each in compared.findings:
                _say(each)
                event = event_of(each)
                if event is not None:
                    self._put_event(event)
            for line in sorted(set(compared.left) - self._left):
                log.error("a hold could not be compared with the Kubernetes API", error=line)
            self._left = frozenset(compared.left)
        # Also without a finding: a DEL may have ended a hold, and another process a fence.
        self._fence()
        absent = compared.absent if compared is not None else ""
        if not absent and scope == _EVERYTHING:
            if network is None:
                self._compared = moment
            else:
                self._networks[network] = moment
        return absent

    # -- the connection

    def _watch(self) -> None:
        """Begin to watch the connection, once there is an API."""
        if self._watches:
            return
        try:
            api = self._find_api()
        except CNIError:
            return  # calls that need it say so
        if api is None:
            return
        from cnvnet.kube.watch import Selection, Watcher

        # Of these there are few, and they hardly ever change.
        networks = Selection(IP_NETWORKS, metadata_only=True)
        watcher = Watcher(api, networks, _ignore, self.observe, self.count_break)
        self._watches.append(watcher.stop)
        threading.Thread(target=watcher.run, name="api-connection", daemon=True).start()

    def observe(self, problem: str) -> None:
        """The connection that is watched is lost (why), or there is one again (""). One thread calls it."""
        self._is_watched = not problem
        # In both cases: the API may have come and gone between two attempts to watch it.
        self._connection += 1
        if not problem:
            self._wake.set()

    def count_break(self) -> None:
        """The connection that is watched broke off; it may be there again by now."""
        self._connection += 1
        self._wake.set()

    def _report(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("holds wait to be compared with the Kubernetes API", error=trouble)
        self._trouble = trouble


def _ignore(change: str, document: Document) -> None:
    """The connection alone is of interest."""


def event_of(finding: Finding) -> KubernetesEvent | None:
    """What is said of the pod of a hold; None for one that the API has never had."""
    holder = finding.hold.holder
    namespace, _, name = holder.pod.partition("/") if holder is not None else ("", "", "")
    if holder is None or not name:
        return None
    pod = InvolvedObject(PODS.api_version, PODS.kind, namespace, name, holder.pod_uid)
    text = f"{', '.join(map(str, finding.hold.lease.ips))}: {_SAID[finding.kind]}"
    text = f"{text}: {finding.reason}" if finding.reason else text
    return KubernetesEvent(pod, _REASONS[finding.kind], text, WARNING if finding.hold.dispute else NORMAL)


def _say(finding: Finding) -> None:
    hold = finding.hold
    pod = hold.holder.pod if hold.holder is not None else ""
    addresses = ", ".join(map(str, hold.lease.ips))
    write = log.info if finding.kind == "opened" else log.warning
    write(
        _SAID[finding.kind],
        network=hold.network,
        pod=pod or hold.container_id,
        interface=hold.ifname,
        addresses=addresses,
        reason=finding.reason,
    )
