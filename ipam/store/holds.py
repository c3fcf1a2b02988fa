"""What the pods of this node hold in the Kubernetes store, as files of this node: one for each interface.

A file is written before the first request to the API. So it is the intent that heals an ADD that was killed,
the index by which DEL, CHECK and GC need no API, and, once its pod has gone, the queue of what is still to
be written to the API.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from cnvnet.call_context import log
from cnvnet.cni.errors import IO_FAILURE, NOT_AVAILABLE, TRY_AGAIN_LATER, CNIError, InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.ipam.lease import Holder, Lease
from cnvnet.ipam.store import object_names, objects
from cnvnet.ipam.store.ref import holds_folder
from cnvnet.kernel import flock, private_folder, regular_file

# The states of a hold, in their order: requested, answered, ended by DEL or GC and still in the API, and
# ended with the addresses of a pod that is no VM cooling down.
ADDING: Final = "adding"
HELD: Final = "held"
RELEASING: Final = "releasing"
COOLING: Final = "cooling"

_VERSION: Final = 1
# What regular_file.read says of a place where no file of ours can be.
_DAMAGED: Final = (errno.EINVAL, errno.EFBIG)
# Files whose content is not decoded anew as long as it is the same: a DEL reads its file several times.
_REMEMBERED: Final = 64
# Seconds that a change of one file waits for others, which take a millisecond.
_PATIENCE: Final = 10.0


class Hold(NamedTuple):
    """What an interface of a pod of this node holds."""

    state: str
    container_id: str
    ifname: str
    # As the ADD has left it, or (ADDING) is going to.
    lease: Lease
    # Of the VMLease; "" where it is not known yet, or there is none.
    lease_uid: str = ""
    # The key of `status.holders` in the VMLease.
    holder_key: str = ""
    # Addresses with IPReservations that may name the lease though it does not list them.
    addresses: tuple[str, ...] = ()
    # Of a pod that is no VM: its IPReservations by their names, and their UIDs.
    reservations: Mapping[str, str] = {}
    # Of RELEASING: whether the lease ends with it, and its deletion may have begun.
    ends: bool = False
    # Of COOLING: until when, in seconds since 1970.
    until: int = 0
    since: int = 0
    # Of HELD: the resourceVersion of the VMLease as the ADD has left it, "" where it is not known.
    version: str = ""
    # Of HELD: whether the VMLease of that version has addresses as pending that are all reserved.
    is_unsettled: bool = False
    # Of HELD: the lease or reservations that were missing in the API are being made again.
    is_remade: bool = False
    # Of HELD: why what it holds counts as another one's in the API, "" where it does not.
    dispute: str = ""
    # Of HELD, with a dispute: whether the pod may not use what it holds.
    fenced: bool = False

    @property
    def holder(self) -> Holder | None:
        """The pod's interface."""
        return self.lease.holder(self.container_id, self.ifname)

    @property
    def network(self) -> str:
        """The network's name."""
        return self.lease.key.network

    @property
    def interface(self) -> tuple[str, str, str]:
        """Network, container, interface: what names the file. Addresses that cool down have no container."""
        if self.state == COOLING:
            return self.network, self.lease.key.vm, self.lease.key.interface
        return self.network, self.container_id, self.ifname


class Intent:
    """A hold that is being made. Its file is locked, so that others can tell it from one that was left."""

    def __init__(self, hold: Hold, former: Hold | None, fd: int) -> None:
        self.hold = hold
        # What the file was before, None if there was none.
        self.former = former
        self.fd = fd

    def close(self) -> None:
        """Unlock the file, whatever has become of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Holds:
    """The files of a folder. Several processes and threads use it."""

    def __init__(self, statedir: str) -> None:
        self.statedir = statedir
        self._root = os.path.join(statedir, "kubernetes")
        self.folder = holds_folder(statedir)

    def ensure_writable(self) -> None:
        """CNIError 50 if no ADD of this node could write its file."""
        place = self.folder
        while not os.path.lexists(place) and place != os.path.dirname(place):
            place = os.path.dirname(place)
        if not (os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)):
            raise CNIError(NOT_AVAILABLE, f"{self.folder}: cannot be written ({place})")

    def get(self, network: str, container_id: str, ifname: str) -> Hold | None:
        """What the interface holds, None for nothing. CNIError 5."""
        return self._read(self._path((network, container_id, ifname)))

    def all(self, network: str | None = None) -> list[Hold]:
        """All holds, or those in one network, in no particular order. CNIError 5."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as e:
            raise _unusable(self.folder, e) from e
        paths = (os.path.join(self.folder, name) for name in names if name.endswith(".json"))
        holds = [hold for path in paths if (hold := self._read(path)) is not None]
        return [each for each in holds if network in (None, each.network)]

    def disputed(self) -> list[Hold]:
        """The holds whose addresses count as another one's in the API. CNIError 5."""
        return [each for each in self.all() if each.dispute and each.state == HELD]

    def fenced(self) -> list[Hold]:
        """Those whose pods may not use them. CNIError 5."""
        return [each for each in self.disputed() if each.fenced]

    def begin(self, hold: Hold) -> Intent:
        """Write an ADDING hold; it is locked from the moment on at which others can see it. CNIError 5.

        CNIError 11 while another ADD of the interface goes on, or the queue ends what it has held; of one
        that `is_remade`, also where a DEL has ended it.
        """
        path = self._path(hold.interface)
        with self._locked():
            former = self._read(path)
            if hold.is_remade and (former is None or former.state != HELD):
                raise CNIError(TRY_AGAIN_LATER, f"container {hold.container_id}: was deleted meanwhile")
            if former is not None and self.is_in_use(former):
                text = f"{hold.ifname} is still being added or released: try again"
                raise CNIError(TRY_AGAIN_LATER, f"container {hold.container_id}: {text}")
            fd = self._put(path, hold, lock=True)
        return Intent(hold, former, fd)

    def claim(self, hold: Hold) -> Intent | None:
        """Lock what a look has found, for the queue: no ADD of the interface begins until it is closed.

        An ADDING hold becomes RELEASING: its ADD was killed. None if something else has been written since,
        or another process works on it. CNIError 5.
        """
        path = self._path(hold.interface)
        with self._locked():
            if self._read(path) != hold or self.is_in_use(hold):
                return None
            claimed = hold._replace(state=RELEASING, ends=True) if hold.state == ADDING else hold
            # Not synced: an ADDING hold that comes back after a crash is worked through to the same end.
            fd = self._put(path, claimed, lock=True, synced=False)
        return Intent(claimed, hold, fd)

    def rewrite(self, intent: Intent, hold: Hold) -> None:
        """What is requested now, while the intent is open: written without a sync, a kill leaves it.

        CNIError 11 where a DEL has come in between.
        """
        with self._locked():
            self._ensure_current(intent)
            fd = self._put(self._path(hold.interface), hold, lock=True, synced=False)
            intent.close()
            intent.hold, intent.fd = hold, fd

    def finish(self, intent: Intent, hold: Hold) -> None:
        """The ADD is done. CNIError 11 where a DEL has come in between, 5."""
        with self._locked():
            self._ensure_current(intent)
            # Not synced: a crash of the node ends its pods, and a file that is ADDING still has their end.
            self._put(self._path(hold.interface), hold, synced=False)
        intent.close()

    def withdraw(self, intent: Intent) -> None:
        """The ADD came to nothing: the file is as it was, unless a DEL has come in between."""
        with self._locked():
            if self._is_current(intent):
                if intent.former is not None:
                    self._put(self._path(intent.hold.interface), intent.former)
                else:
                    self._unlink(intent.hold)
        intent.close()

    def write(self, hold: Hold) -> None:
        """Replace what an interface holds. CNIError 5."""
        with self._locked():
            self._put(self._path(hold.interface), hold)

    def replace(self, former: Hold, hold: Hold) -> bool:
        """Like `write`, unless something else has been written since: False. CNIError 5."""
        with self._locked():
            if self._read(self._path(former.interface)) != former:
                return False
            self._put(self._path(hold.interface), hold)
        return True

    def remove(self, hold: Hold) -> None:
        """The interface holds nothing any more, unless something else has been written there. CNIError 5."""
        with self._locked():
            current = self._read(self._path(hold.interface))
            if current is not None and current.lease.key == hold.lease.key and current.state == hold.state:
                self._unlink(hold)

    def is_in_use(self, hold: Hold) -> bool:
        """Whether a process works on the interface: the ADD that has written the file, or the queue."""
        try:
            fd = os.open(self._path(hold.interface), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # Shared: two that look do not take each other for one that works on it.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _path(self, interface: tuple[str, str, str]) -> str:
        text = chr(0).join(interface).encode(errors="surrogatepass")
        return os.path.join(self.folder, f"{hashlib.sha256(text).hexdigest()[:40]}.json")

    def _is_current(self, intent: Intent) -> bool:
        try:
            now = os.stat(self._path(intent.hold.interface))
        except FileNotFoundError:
            return False
        return intent.fd >= 0 and os.path.samestat(now, os.fstat(intent.fd))

    def _ensure_current(self, intent: Intent) -> None:
        if not self._is_current(intent):
            container_id = intent.hold.container_id
            raise CNIError(TRY_AGAIN_LATER, f"container {container_id}: was deleted while it was added")

    def _put(self, path: str, hold: Hold, *, lock: bool = False, synced: bool = True) -> int:
        """Write a file as a whole; its locked descriptor, or -1."""
        try:
            fd = os.open(
                f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            try:
                if lock:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                private_folder.write(fd, _encoded(hold))
                if synced:
                    os.fsync(fd)
                os.rename(f"{path}.new", path)
                if synced:
                    private_folder.sync(self.folder)
            except BaseException:
                os.close(fd)
                raise
        except OSError as e:
            raise _unusable(path, e) from e
        if lock:
            return fd
        os.close(fd)
        return -1

    def _unlink(self, hold: Hold) -> None:
        # Not synced: a file that comes back after a crash is worked through once more, to the same end.
        path = self._path(hold.interface)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as e:
            raise _unusable(path, e) from e

    def _read(self, path: str) -> Hold | None:
        try:
            place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise _unusable(path, e) from e
        try:
            return _decoded(regular_file.read(place))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, InvalidConfig) as e:
            if isinstance(e, OSError) and e.errno not in _DAMAGED:
                raise _unusable(path, e) from e
            # A DEL that failed for it would keep the pod for ever.
            log(f"{path}: {e}: ignored (remove it; the pod's addresses are freed when it is gone)")
            return None
        finally:
            os.close(place)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """One change at a time. The folder itself is the lock: nothing else locks it."""
        try:
            private_folder.ensure(os.path.dirname(self._root), self._root, self.folder)
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            raise _unusable(self.folder, e) from e
        try:
            flock.acquire(fd, _PATIENCE, longest_pause=0.002)
            yield
        except TimeoutError as e:
            raise _unusable(self.folder, e) from e
        finally:
            with suppress(OSError):
                os.close(fd)


def _unusable(path: str, e: OSError) -> CNIError:
    return CNIError(IO_FAILURE, f"{path}: {(e.strerror or str(e)).lower()}")


def _encoded(hold: Hold) -> bytes:
    written = hold._asdict() | {"v": _VERSION, "lease": objects.lease_document(hold.lease)}
    return json.dumps(written, separators=(",", ":")).encode()


@lru_cache(maxsize=_REMEMBERED)
def _decoded(content: bytes) -> Hold:
    """Raises InvalidConfig, or what Python says of a wrong type, for what no agent has written."""
    written = json.loads(content)
    if not isinstance(written, dict):
        raise ValueError("no hold")
    found = Fields(cast("dict[str, Any]", written))
    if found.raw("v") != _VERSION:
        raise ValueError(f"version {found.raw('v')!r} is not {_VERSION}")
    lease, state = objects.read_lease(found.fields("lease").data).lease, found.text("state")
    if lease is None or state not in (ADDING, HELD, RELEASING, COOLING):
        raise ValueError("no hold")
    addresses = found.texts("addresses")
    object_names.ips_of(addresses)
    reservations = found.fields("reservations")
    return Hold(
        state=state,
        container_id=found.required("container_id"),
        ifname=found.required("ifname"),
        lease=lease,
        lease_uid=found.text("lease_uid"),
        holder_key=found.text("holder_key"),
        addresses=addresses,
        reservations={name: reservations.required(name) for name in reservations.data},
        ends=found.flag("ends"),
        until=found.integer("until"),
        since=found.integer("since"),
        version=found.text("version"),
        is_unsettled=found.flag("is_unsettled"),
        is_remade=found.flag("is_remade"),
        dispute=found.text("dispute"),
        fenced=found.flag("fenced"),
    )
