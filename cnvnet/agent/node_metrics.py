"""What is read of the node when a scraper asks: guests, attachments, leases, guards, calls.

No call waits for it: records are read without their locks, leases beside the writers, and nftables by a
listing of named counters. What cannot be read is left out, and logged once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from cnvnet import VERSION
from cnvnet.agent.guests.packet_loop_process import Totals
from cnvnet.agent.guests.reconciler import RecordChanges
from cnvnet.agent.metrics import Networks
from cnvnet.attachment import files
from cnvnet.attachment.record import ADDED, UnreadableRecord
from cnvnet.cni.errors import CNIError
from cnvnet.ipam.store.protocol import Usage
from cnvnet.kernel.boot import boot_id
from cnvnet.resident import log


class CallCounts(Protocol):
    """What runs CNI calls."""

    def running(self) -> int:
        """How many calls have a slot."""
        ...

    def waiting(self) -> int:
        """How many calls are queued."""
        ...


class GuestCounts(Protocol):
    """What serves guests: how many are served or waiting, by (state, network)."""

    def counts(self) -> Counter[tuple[str, str]]:
        """How many guests there are, by state and network."""
        ...


class LoopCounts(Protocol):
    """What answers their frames."""

    restarts: int

    def totals(self) -> Totals:
        """What the packet loop has counted since it started."""
        ...


class Sources(NamedTuple):
    """Whatever is asked. `usage` reads the leases of all stores; it raises CNIError or OSError.

    `disputes` counts interfaces by state (fenced, open) and network; it raises CNIError.
    """

    guests: GuestCounts
    loop: LoopCounts
    calls: CallCounts
    attached: Callable[[], Counter[tuple[str, str]]]
    usage: Callable[[], Iterable[Usage]]
    drops: Callable[[], dict[str, int]]
    disputes: Callable[[], Counter[tuple[str, str]]]


class NodeMetrics(Collector):
    """All of it. For one scrape at a time."""

    def __init__(self, sources: Sources, networks: Networks) -> None:
        self._sources = sources
        self._networks = networks
        self._complained: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        """Read the node: called by the registry for each scrape."""
        yield from self._guests()
        yield from self._calls()
        for part in (self._attachments, self._addresses, self._drops, self._disputes):
            try:
                yield part()
            except (CNIError, OSError) as e:
                self._complain(part.__name__.strip("_"), e)
        yield InfoMetricFamily("cnvnet_agent_build", "The version of this agent.", {"version": VERSION})

    def describe(self) -> Iterator[Metric]:
        """No names, so that registering reads nothing."""
        # Without it the registry would collect at once to learn the names.
        return iter(())

    def _complain(self, what: str, error: CNIError | OSError) -> None:
        text = error.msg if isinstance(error, CNIError) else str(error)
        if text != self._complained.get(what):
            self._complained[what] = text
            log.warning("a metric is missing", metric=what, reason=text)

    def _guests(self) -> Iterator[Metric]:
        totals = self._sources.loop.totals()
        events = CounterMetricFamily(
            "cnvnet_guest_events",
            "Frames of guests by the service they were for and what came of them: answered (offer, ack,"
            " advertise, ...) or not, with the reason (malformed, other_client, ...).",
            labels=["service", "event"],
        )
        for (service, event), number in sorted(totals.events.items()):
            events.add_metric([service, event], number)
        yield events
        text = "Guests by state (served; waiting: should be served and cannot be, the log says why)."
        yield self._by_network("cnvnet_guests", text, ("state", "network"), self._sources.guests.counts())
        yield CounterMetricFamily(
            "cnvnet_guest_frames_dropped",
            "Frames of guests that were lost because a guest sent faster than it is answered.",
            totals.dropped,
        )
        yield CounterMetricFamily(
            "cnvnet_guest_throttled",
            "How often the loop paused a guest because it sent more than its share.",
            totals.throttled,
        )
        yield CounterMetricFamily(
            "cnvnet_packet_loop_restarts",
            "How often the packet loop had ended and was started again.",
            max(self._sources.loop.restarts, 0),
        )

    def _calls(self) -> Iterator[Metric]:
        calls = self._sources.calls
        yield GaugeMetricFamily("cnvnet_calls_running", "CNI calls that run now.", calls.running())
        yield GaugeMetricFamily("cnvnet_calls_waiting", "CNI calls that wait for a slot.", calls.waiting())

    def _attachments(self) -> Metric:
        text = "Interfaces of pods that an ADD has made and no DEL has removed, by plugin and network."
        return self._by_network("cnvnet_attachments", text, ("plugin", "network"), self._sources.attached())

    def _addresses(self) -> Metric:
        """Of networks that have several families, or several stores, the sums.

        What a store that cannot be read has is missing.
        """
        counts: Counter[tuple[str, str]] = Counter()
        try:
            for usage in self._sources.usage():
                for state in ("active", "stopped", "cooling", "free"):
                    number = getattr(usage, state)
                    if number is not None:
                        counts[state, usage.network] += number
        except (CNIError, OSError) as e:
            if not counts:
                raise
            self._complain("addresses", e)
        text = (
            "Addresses of static-ip by network and state: active (a pod's), stopped (kept for a VM that does"
            " not run), cooling (given back a moment ago), free (absent until the network's next ADD)."
        )
        return self._by_network("cnvnet_ipam_addresses", text, ("state", "network"), counts)

    def _drops(self) -> Metric:
        text = "Frames that the guards of guests' ports have dropped, by reason."
        drops = CounterMetricFamily("cnvnet_guard_drops", text, labels=["reason"])
        for reason, packets in sorted(self._sources.drops().items()):
            drops.add_metric([reason], packets)
        return drops

    def _disputes(self) -> Metric:
        text = (
            "Interfaces of pods whose addresses are another one's in the Kubernetes API, by state (fenced:"
            " the port's frames are dropped; open: the pod goes on, for its claim is the older one)."
        )
        return self._by_network(
            "cnvnet_disputed_interfaces", text, ("state", "network"), self._sources.disputes()
        )

    def _by_network(
        self, name: str, text: str, labels: tuple[str, str], counts: Counter[tuple[str, str]]
    ) -> Metric:
        bounded: Counter[tuple[str, str]] = Counter()
        for (other, network), number in counts.items():
            bounded[other, self._networks.label(network)] += number
        family = GaugeMetricFamily(name, text, labels=labels)
        for values, number in sorted(bounded.items()):
            family.add_metric(values, number)
        return family


class Attached:
    """Counts the records by plugin and network. Only those that have changed are read again."""

    def __init__(self, rundir: str) -> None:
        self._rundir = rundir
        self._records = RecordChanges(files.folder(rundir))
        self._known: dict[str, tuple[str, str]] = {}

    def count(self) -> Counter[tuple[str, str]]:
        """How many attachments there are, by plugin and network."""
        for name in self._records.changed():
            self._known.pop(name, None)
            try:
                record = files.read(self._rundir, name)
            except UnreadableRecord:
                continue  # its plugin says so
            if record is not None and record.state == ADDED and record.boot_id == boot_id():
                self._known[name] = record.key.plugin, record.key.network
        return Counter(self._known.values())
