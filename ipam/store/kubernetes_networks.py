"""Which namespaces may have addresses of a network, how many, and of which ranges: its IPNetwork says so."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from cnvnet.cni.errors import TRY_AGAIN_LATER, CNIError, InvalidConfig
from cnvnet.cni.fields import Address, Fields
from cnvnet.ipam.pool import Pool, Span, as_address
from cnvnet.ipam.store import object_names
from cnvnet.kube.api import Api, Conflict, NotFound
from cnvnet.kube.resources import IP_NETWORKS, IP_RESERVATIONS

# Who may use a network that has no IPNetwork yet: the namespace of the first pod, all, none.
NAMESPACE: Final = "namespace"
OPEN: Final = "open"
REFUSE: Final = "refuse"
NEW_NETWORKS: Final = (NAMESPACE, OPEN, REFUSE)
_ALL: Final = "*"
# Seconds for which an IPNetwork is not read again.
_FRESH: Final = 30.0


class NetworkTerms(NamedTuple):
    """What an IPNetwork says. `ranges` are empty and `limit` is 0 where it does not limit them."""

    name: str
    namespaces: tuple[str, ...]
    # By version of IP.
    ranges: tuple[tuple[int, Span], ...]
    limit: int


class NetworkRegistry:
    """The IPNetworks of a cluster, each read once in 30 s. Agents make them, and never change them."""

    def __init__(self, api: Api, new_networks: str = NAMESPACE) -> None:
        self._api = api
        self._new_networks = new_networks
        self._known: dict[str, tuple[float, NetworkTerms]] = {}

    def ensure_admitted(
        self, network: str, namespace: str, pool: Pool | None, ips: Iterable[Address]
    ) -> NetworkTerms:
        """The terms of a network from which pods of the namespace get these addresses, out of the pool.

        CNIError 7 if they get none, or if the network does not have what the pool gives (without a pool:
        these addresses); ApiError.
        """
        spans = _spans_of(pool, ips)
        terms = self._terms(network, namespace, fresh=False)
        if not _admits(terms, namespace) or _outside(terms, spans):
            # It may have been changed since.
            terms = self._terms(network, namespace, fresh=True)
        refusal = _refusal(terms, network, namespace, spans)
        if refusal:
            raise InvalidConfig(refusal)
        return terms

    def refusals(self, network: str, addresses: Iterable[tuple[str, Iterable[Address]]]) -> list[str] | None:
        """Why pods of namespaces would not get addresses; None: the network has no IPNetwork. ApiError."""
        terms = self._read(network)
        if terms is None:
            return None
        found = (_refusal(terms, network, each, _spans_of(None, ips)) for each, ips in addresses)
        return list(dict.fromkeys(filter(None, found)))

    def make(self, network: str, namespaces: Iterable[str]) -> NetworkTerms:
        """Make the IPNetwork of a network that has none, for these namespaces. ApiError."""
        name, admitted = object_names.network_name(network), tuple(namespaces)
        document = {
            "apiVersion": object_names.API_VERSION,
            "kind": "IPNetwork",
            "metadata": {"name": name},
            "spec": {"namespaces": list(admitted)},
        }
        try:
            self._api.create(IP_NETWORKS, document)
        except Conflict:
            made = self._read(network)
            if made is not None:
                return made
            raise
        return NetworkTerms(name, admitted, (), 0)

    def is_there(self, network: str) -> bool:
        """Whether the network has an IPNetwork. ApiError."""
        return self._read(network) is not None

    def ensure_within_limit(self, network: str, namespace: str, terms: NetworkTerms) -> None:
        """CNIError 11 if pods of the namespace have more addresses of one family than the network grants."""
        if not terms.limit:
            return
        labels = object_names.of_namespace(network, namespace)
        reservations = self._api.list(IP_RESERVATIONS, labels=labels, metadata_only=True).items
        ips = [object_names.reserved_ip(network, each["metadata"]["name"]) for each in reservations]
        counts = [sum(1 for ip in ips if ip is not None and ip.version == version) for version in (4, 6)]
        if max(counts) > terms.limit:
            raise CNIError(
                TRY_AGAIN_LATER,
                f"network {network}: namespace {namespace} has {max(counts) - 1} of {terms.limit} addresses "
                f"that IPNetwork {terms.name} grants it: delete a VM, or raise its spec.maxPerNamespace",
            )

    def _terms(self, network: str, namespace: str, *, fresh: bool) -> NetworkTerms:
        end, terms = self._known.get(network, (0.0, None))
        if terms is None or fresh or time.monotonic() >= end:
            terms = self._read(network) or self._make(network, namespace)
            self._known[network] = (time.monotonic() + _FRESH, terms)
        return terms

    def _read(self, network: str) -> NetworkTerms | None:
        name = object_names.network_name(network)
        try:
            document = self._api.get(IP_NETWORKS, name)
        except NotFound:
            return None
        spec = Fields(document.get("spec") or {}, f"IPNetwork {name}: spec")
        ranges = tuple(
            _range(text, f"{spec.path('ranges')}[{index}]")
            for index, text in enumerate(spec.texts("ranges"))
        )
        return NetworkTerms(
            name, spec.texts("namespaces"), ranges, spec.integer("maxPerNamespace", minimum=0)
        )

    def _make(self, network: str, namespace: str) -> NetworkTerms:
        name = object_names.network_name(network)
        if self._new_networks == REFUSE:
            raise InvalidConfig(
                f"network {network}: there is no IPNetwork {name}, and agents make none here: an "
                f'administrator makes it, with "- {namespace}" in its spec.namespaces'
            )
        return self.make(network, (_ALL,) if self._new_networks == OPEN else (namespace,))


def _admits(terms: NetworkTerms, namespace: str) -> bool:
    return _ALL in terms.namespaces or namespace in terms.namespaces


def _refusal(terms: NetworkTerms, network: str, namespace: str, spans: list[tuple[int, Span]]) -> str:
    """Why a namespace does not get addresses of the spans, "" if it does."""
    if not _admits(terms, namespace):
        allowed = ", ".join(terms.namespaces) or "no namespace"
        return (
            f"network {network}: namespace {namespace} may not use it: IPNetwork {terms.name} admits "
            f'{allowed}: add "- {namespace}" to its spec.namespaces '
            f"(kubectl edit ipnetwork {terms.name})"
        )
    outside = _outside(terms, spans)
    return f"network {network}: IPNetwork {terms.name} does not give out {outside}" if outside else ""


def _spans_of(pool: Pool | None, ips: Iterable[Address]) -> list[tuple[int, Span]]:
    if pool is None:
        return [(ip.version, Span(int(ip), int(ip))) for ip in ips]
    return [(given.version, span) for given in pool.sets for span in given.spans]


def _outside(terms: NetworkTerms, spans: list[tuple[int, Span]]) -> str:
    """What of the spans is in none of the network's ranges, "" for nothing."""
    if not terms.ranges:
        return ""
    for version, (first, last) in spans:
        allowed = [span for of, span in terms.ranges if of == version]
        if not any(low <= first and last <= high for low, high in allowed):
            ends = dict.fromkeys((as_address(version, first), as_address(version, last)))
            return "-".join(map(str, ends))
    return ""


def _range(text: str, where: str) -> tuple[int, Span]:
    """A range as an IPNetwork has it: a subnet, or first-last."""
    first, dash, last = text.partition("-")
    try:
        if dash:
            ends = ipaddress.ip_address(first.strip()), ipaddress.ip_address(last.strip())
            if ends[0].version == ends[1].version:
                return ends[0].version, Span(int(ends[0]), int(ends[1]))
            raise ValueError
        subnet = ipaddress.ip_network(text)
    except ValueError:
        raise InvalidConfig(
            f'{where}: "{text[:64]}" is no subnet and no range such as 10.0.0.5-10.0.0.9'
        ) from None
    return subnet.version, Span(int(subnet[0]), int(subnet[-1]))
