"""What the agent counts, for Prometheus. What is read when a scraper asks is in node_metrics."""

from __future__ import annotations

import threading
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from cnvnet.agent.calls import call_log
from cnvnet.agent.calls.call_log import FinishedCall
from cnvnet.cni.errors import (
    INVALID_CONFIG,
    INVALID_ENVIRONMENT,
    IO_FAILURE,
    TRY_AGAIN_LATER,
    CNIError,
)

# Seconds of a call: from a DEL of nothing to an address manager that hangs.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 20, 100)
# Tenants who may write a NetworkAttachmentDefinition name networks: so many have a label of their own,
# and none a longer name than Kubernetes' objects have (253 characters).
_MOST_NETWORKS: Final = 500
_LONGEST_NETWORK: Final = 253
OTHER: Final = "(other)"
_REASONS: Final = {
    TRY_AGAIN_LATER: "busy",
    INVALID_CONFIG: "refused",
    INVALID_ENVIRONMENT: "refused",
    IO_FAILURE: "store",
}
# host-local's text, too: the one by which a full pool is known everywhere.
_FULL: Final = "no IP addresses available in range set"


class Networks:
    """The label `network` of all metrics: the first names are kept, all others, and long ones, are one."""

    def __init__(self, most: int = _MOST_NETWORKS) -> None:
        self._most = most
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def label(self, name: str) -> str:
        """The network's name as a label, or OTHER when there are too many or it is too long."""
        if len(name) > _LONGEST_NETWORK:
            return OTHER
        with self._lock:
            if name not in self._known and len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


class Metrics:
    """All counters, in a registry of their own."""

    def __init__(self, networks: Networks) -> None:
        # When a counter began is when the process did.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types for it
        self.registry = CollectorRegistry()
        self._networks = networks
        self._requests = Counter(
            "cnvnet_agent_requests",
            "Requests of plugins on the agent's socket, by kind and by the error's code (0: done).",
            ["kind", "code"],
            registry=self.registry,
        )
        self._calls = Counter(
            "cnvnet_cni_calls",
            "CNI calls that the agent has run, by plugin, command and the CNI error's code (0: none).",
            ["plugin", "command", "code"],
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "cnvnet_cni_call_duration_seconds",
            "Seconds for which a CNI call ran in the agent, without those it had waited for a slot.",
            ["plugin", "command"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._failures = Counter(
            "cnvnet_ipam_allocation_failures",
            "ADDs that static-ip gave no address, by reason: exhausted (every address of a range set is"
            " taken), busy (another reason that may pass), refused (what was asked cannot be had), store"
            " (leases.db cannot be used), internal.",
            ["network", "reason"],
            registry=self.registry,
        )
        self._unknown_keys = Counter(
            "cnvnet_config_unknown_keys",
            "Keys that no plugin knows, in the configurations of ADDs, by network.",
            ["network"],
            registry=self.registry,
        )
        self._dropped_events = Counter(
            "cnvnet_agent_events_dropped",
            "Kubernetes events about addresses that were not written.",
            registry=self.registry,
        )
        self._reconciliations = Counter(
            "cnvnet_nft_reconciliations",
            "How often rules or elements were missing in a table of nftables and were restored.",
            ["table"],
            registry=self.registry,
        )
        self._newer = Gauge(
            "cnvnet_nft_table_newer_than_agent",
            "1 where a table of nftables was loaded by a newer version than this agent, which leaves it.",
            ["table"],
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def observe(self, kind: str, code: int) -> None:
        """One request was answered."""
        self._requests.labels(kind, str(code)).inc()

    def observe_call(self, call: FinishedCall) -> None:
        """One CNI call has been run."""
        self._calls.labels(call.plugin, call.command, str(call.code)).inc()
        self._call_seconds.labels(call.plugin, call.command).observe(call.seconds)
        if call.response.unknown_keys:
            network = str(call_log.describe(call).get("network", ""))
            self._unknown_keys.labels(self._networks.label(network)).inc(call.response.unknown_keys)

    def observe_refusal(self, network: str, error: CNIError) -> None:
        """static-ip gave no address to an ADD."""
        full = _FULL in error.msg or _FULL in error.details
        reason = "exhausted" if full else _REASONS.get(error.code, "internal")
        self._failures.labels(self._networks.label(network), reason).inc()

    def observe_dropped_event(self) -> None:
        """An event about an address was not written."""
        self._dropped_events.inc()

    def observe_table(self, table: str, *, reconciled: bool, newer: bool) -> None:
        """A table of nftables was reconciled."""
        self._reconciliations.labels(table).inc(reconciled)
        self._newer.labels(table).set(newer)
