"""All leases of a cluster at once, as a person asks for them: lists of networks, which no ADD makes."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

from cnvnet.cni.errors import IO_FAILURE, CNIError
from cnvnet.ipam.lease import Cooldown, Lease, LeaseKey
from cnvnet.ipam.pool import Pool, Span
from cnvnet.ipam.store import object_names, objects
from cnvnet.ipam.store.objects import StoredReservation
from cnvnet.ipam.store.protocol import KnownRanges, KnownSet, Usage
from cnvnet.ipam.store.ref import pool_file, pools_folder
from cnvnet.kernel import flock, private_folder, regular_file
from cnvnet.kube.api import Api
from cnvnet.kube.resources import IP_RESERVATIONS, VM_LEASES

# Bytes of one file. What a network has to give is unknown where it is longer.
_LONGEST_POOL: Final = 1 << 20
# Seconds that a write waits for others, which take a millisecond.
_PATIENCE: Final = 10.0


class KnownPools:
    """What networks have to give, as the last ADD of this node had it: one file for each network."""

    def __init__(self, statedir: str) -> None:
        self._statedir = statedir
        self._folder = pools_folder(statedir)
        self._written: dict[str, dict[int, KnownRanges]] = {}

    def write(self, network: str, pool: Pool) -> None:
        """Keep it where it is another one than before. CNIError 5."""
        known = _ranges(pool)
        if self._written.get(network) == known:
            return
        if self.read(network) != known:
            content = {
                "network": network,
                "ranges": {family: list(each.sets) for family, each in known.items()},
            }
            root = os.path.dirname(self._folder)
            try:
                private_folder.ensure(os.path.dirname(root), root, self._folder)
                self._put(pool_file(self._statedir, network), json.dumps(content).encode())
            except OSError as e:
                raise CNIError(IO_FAILURE, f"{self._folder}: {(e.strerror or str(e)).lower()}") from e
        self._written[network] = known

    def _put(self, path: str, content: bytes) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The first ADDs of a network come together.
            flock.acquire(fd, _PATIENCE)
            private_folder.put(path, content)
        finally:
            os.close(fd)

    def read(self, network: str) -> dict[int, KnownRanges]:
        """By family; {} where no ADD of the network has come to this node."""
        content = self._content(pool_file(self._statedir, network))
        return _read_ranges(content["ranges"]) if content is not None else {}

    def networks(self) -> list[str]:
        """The networks of which ADDs have come to this node."""
        try:
            names = os.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        contents = (self._content(os.path.join(self._folder, name)) for name in names)
        return [each["network"] for each in contents if each is not None]

    def _content(self, path: str) -> dict[str, Any] | None:
        try:
            place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            document: object = json.loads(regular_file.read(place, _LONGEST_POOL))
        except (OSError, ValueError):
            return None  # what it gave is counted again with the next ADD
        finally:
            os.close(place)
        if not isinstance(document, dict):
            return None
        content = cast("dict[str, Any]", document)
        return content if "ranges" in content and "network" in content else None


class LeaseSurvey:
    """All leases and cooldowns, listed when they are first asked for."""

    def __init__(self, api: Api, known: KnownPools) -> None:
        self._api = api
        self._known = known
        self._listed: dict[str | None, tuple[list[Lease], list[Cooldown]]] = {}

    def has_listed(self, network: str) -> bool:
        """Whether the leases of a network were asked for."""
        return network in self._listed or None in self._listed

    def leases(self, network: str | None) -> list[Lease]:
        """The leases of one network, or of all, in the order of their keys. ApiError."""
        return self._all(network)[0]

    def cooldowns(self, network: str | None) -> list[Cooldown]:
        """The addresses that cool down, of one network or of all. ApiError."""
        return self._all(network)[1]

    def pools(self, network: str) -> dict[int, KnownRanges]:
        """What a network has to give, by family."""
        return self._known.read(network)

    def usage(self, network: str | None, *, now: int) -> Iterator[Usage]:
        """The counts by network and family. ApiError."""
        states: defaultdict[tuple[str, int], dict[int, str]] = defaultdict(dict)
        for lease in self.leases(network):
            state = "active" if lease.holders else "stopped"
            for ip in lease.ips:
                states[lease.key.network, ip.version][int(ip)] = state
        for each in self.cooldowns(network):
            if each.until > now:
                states[each.key.network, each.ip.version].setdefault(int(each.ip), "cooling")
        networks = self._known.networks() if network is None else [network]
        pools = {(name, family): each for name in networks for family, each in self.pools(name).items()}
        for name, family in sorted({*states, *pools}):
            yield _usage(name, family, states[name, family], pools.get((name, family)))

    def _all(self, network: str | None) -> tuple[list[Lease], list[Cooldown]]:
        if network not in self._listed:
            labels = (
                f"{object_names.NETWORK_LABEL}={object_names.network_label(network)}"
                if network is not None
                else ""
            )
            stored = [objects.read_lease(each) for each in self._api.list(VM_LEASES, labels=labels).items]
            leases = [each.lease for each in stored if each.lease is not None]
            cooldowns = [cooling for each in stored for cooling in each.cooling]
            reserved = self._api.list(IP_RESERVATIONS, labels=labels).items
            pods: defaultdict[LeaseKey, list[StoredReservation]] = defaultdict(list)
            for each in map(objects.read_reservation, reserved):
                if each.pod is not None and each.until:
                    pod = each.pod
                    times = (each.until, each.since)
                    cooldowns += [Cooldown(pod.key, ip, pod.mac, pod.vm_uid, *times) for ip in pod.ips]
                elif each.pod is not None:
                    pods[each.pod.key].append(each)
            of_pods = map(objects.pod_lease, pods.values())
            leases += [lease for lease in of_pods if lease is not None]
            self._listed[network] = (sorted(leases, key=lambda each: each.key), cooldowns)
        return self._listed[network]


def _usage(network: str, family: int, states: Mapping[int, str], known: KnownRanges | None) -> Usage:
    counts = list(states.values())
    free = None
    if known is not None:
        taken = sum(1 for value in states if any(first <= value <= last for first, last in known.spans))
        free = known.size - taken
    name = known.name if known is not None else ""
    return Usage(
        network, family, name, counts.count("active"), counts.count("stopped"), counts.count("cooling"), free
    )


def _ranges(pool: Pool) -> dict[int, KnownRanges]:
    families = sorted({each.version for each in pool.sets})
    return {
        family: KnownRanges(
            tuple(KnownSet(each.name, each.spans) for each in pool.sets if each.version == family)
        )
        for family in families
    }


def _read_ranges(written: Mapping[str, Iterable[Any]]) -> dict[int, KnownRanges]:
    return {
        int(family): KnownRanges(
            tuple(KnownSet(name, tuple(Span(*each) for each in spans)) for name, spans in sets)
        )
        for family, sets in written.items()
    }
