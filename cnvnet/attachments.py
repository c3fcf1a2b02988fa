"""The records of what an ADD leaves behind, and the locks that make calls take turns.

A record is one small file below RUNDIR/attachments, and the file is its own lock: whoever works on an
attachment holds a flock of it. Shared objects (a bridge, a base chain) have lock files in RUNDIR/locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from _thread import get_ident
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol

from cnvnet.cni.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError
from cnvnet.diagnostics import say

RUNDIR: Final = "/run/cnvnet"
VERSION: Final = 1

ADDING: Final = "adding"
ADDED: Final = "added"
DELETING: Final = "deleting"

# More than a record has with every guard and a dozen addresses.
_PROBE_BYTES: Final = 8192


class Key(NamedTuple):
    """Which attachment: GC of one (plugin, network) never touches another's."""

    plugin: str
    network: str
    container_id: str
    ifname: str


class Record(NamedTuple):
    """What an ADD did, written (fsynced) before its first deed. `undo` holds the keys DEL needs, as JSON.

    `guest`, for a binding whose guest is to be served, is what the node's agent has to know: the tap's name
    as `ifname`, and `settings` as cnvnet.guest.settings_json has them.
    """

    key: Key
    netns_path: str
    netns_inode: int
    boot_id: str
    state: str
    undo: dict[str, Any]
    guest: dict[str, Any] | None = None


class Stamp(NamedTuple):
    """A file's identity: a record is never changed but replaced."""

    inode: int
    modified: int
    size: int


class UnreadableRecord(CNIError):
    """The file is not a record this program understands.

    A `newer` program's is left as it is (code 11). A damaged one (code 5) is the attachment's DEL to remove,
    after it has cleaned up without it.
    """

    def __init__(self, path: str, reason: str, *, newer: bool = False) -> None:
        remedy = "it has been left as it is" if newer else "a DEL of the attachment removes it"
        super().__init__(TRY_AGAIN_LATER if newer else IO_FAILURE, f"record {path}: {reason}; {remedy}")
        self.newer = newer


class Slot(Protocol):
    """The place of one record, locked by the holder of this object.

    `read` raises UnreadableRecord; `write` raises CNIError 5; `remove` does nothing when there is no record.
    `stamp` is the file's as it is now.
    """

    def read(self) -> Record | None: ...
    def stamp(self) -> Stamp | None: ...
    def write(self, record: Record) -> None: ...
    def remove(self) -> None: ...


class Attachments(Protocol):
    """All records below one RUNDIR.

    `locked` raises code 11 when another call holds the attachment for longer than `wait_seconds`, and code 5
    when RUNDIR cannot be written, unless `optional`: then the slot reads what is there and forgets what it
    is told. `of_network` and `records` skip and report what they cannot read, and so does `changed`: for a
    process that stays, the records by their file names that are not as `seen` says, None for those that have
    gone; `seen` is brought up to date. It raises OSError where they cannot be listed. `shared` locks what
    several attachments use.
    """

    def locked(
        self, key: Key, *, wait_seconds: float = 10.0, optional: bool = False
    ) -> AbstractContextManager[Slot]: ...
    def of_network(self, plugin: str, network: str) -> Iterator[Key]: ...
    def records(self, plugin: str) -> Iterator[Record]: ...
    def changed(self, plugin: str, seen: dict[str, Stamp]) -> Iterator[tuple[str, Record | None]]: ...
    def shared(self, name: str) -> AbstractContextManager[None]: ...
    def ensure_writable(self) -> None: ...


def rundir(env: Mapping[str, str]) -> str:
    """The caller's RUNDIR, from its CNVNET_RUNDIR."""
    return env.get("CNVNET_RUNDIR") or RUNDIR


def folder(rundir: str) -> str:
    """Where the files of the records are."""
    return os.path.join(rundir, "attachments")


def read(rundir: str, name: str) -> Record | None:
    """The record in the file called `name`, read without its lock; None where there is none.

    Raises UnreadableRecord.
    """
    path = os.path.join(folder(rundir), name)
    return _parse(path, _content(path))


class AttachmentFiles:
    """Attachments as files below `rundir`."""

    def __init__(self, rundir: str) -> None:
        self._records = folder(rundir)
        self._locks = os.path.join(rundir, "locks")

    @contextmanager
    def locked(self, key: Key, *, wait_seconds: float = 10.0, optional: bool = False) -> Generator[Slot]:
        slot = _FileSlot(os.path.join(self._records, file_name(key)), key, readonly=False)
        try:
            _make_folder(self._records)
            slot.lock(wait_seconds)
        except OSError as e:
            if not optional:
                raise _unwritable(self._records, e) from e
            say(f"{self._records}: {e.strerror}: going on without writing records")
            slot = _FileSlot(slot.path, key, readonly=True)
            slot.lock(wait_seconds)
        try:
            yield slot
        finally:
            slot.unlock()

    def of_network(self, plugin: str, network: str) -> Iterator[Key]:
        for record in self.records(plugin):
            if record.key.network == network:
                yield record.key

    def records(self, plugin: str) -> Iterator[Record]:
        """All records of a plugin, read without their locks; none where there is no telling."""
        try:
            for _, record in self.changed(plugin, {}):
                if record is not None:
                    yield record
        except OSError:
            return

    def changed(self, plugin: str, seen: dict[str, Stamp]) -> Iterator[tuple[str, Record | None]]:
        there = _stamps(self._records, plugin)
        for name in [name for name in seen if name not in there]:
            del seen[name]
            yield name, None
        for name in sorted(name for name, stamp in there.items() if seen.get(name) != stamp):
            # The stamp is the older of the two: what is replaced meanwhile is read once more.
            seen[name] = there[name]
            path = os.path.join(self._records, name)
            try:
                record = _parse(path, _content(path))
            except UnreadableRecord as e:
                # Not remembered: what it was about may be read the next time.
                del seen[name]
                say(e.msg)
                record = None
            else:
                if record is None:
                    _sweep(path)
            yield name, record if record is not None and record.key.plugin == plugin else None

    @contextmanager
    def shared(self, name: str) -> Generator[None]:
        path = os.path.join(self._locks, name.replace("/", "_"))
        try:
            _make_folder(self._locks)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise _unwritable(self._locks, e) from e
        try:
            _flock(fd, f"lock {path}", 60.0)
            yield
        finally:
            os.close(fd)

    def ensure_writable(self) -> None:
        """Raises CNIError 5 naming the folder when no record could be written."""
        probe = os.path.join(self._records, f".probe-{os.getpid()}-{get_ident()}")
        try:
            _make_folder(self._records)
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # A full disk still makes empty files.
                _write_all(fd, bytes(_PROBE_BYTES))
                os.fsync(fd)
            finally:
                os.close(fd)
                os.unlink(probe)
        except OSError as e:
            raise _unwritable(self._records, e) from e


class _FileSlot:
    """A record's file. It exists, empty, while somebody holds the lock and nothing has been recorded yet."""

    def __init__(self, path: str, key: Key, *, readonly: bool) -> None:
        self.path = path
        self._key = key
        self._readonly = readonly
        self._held: list[int] = []

    def lock(self, wait_seconds: float) -> None:
        """Holds the lock of the file that bears the name now. OSError when it cannot be opened or made."""
        deadline = time.monotonic() + wait_seconds
        flags = os.O_RDONLY if self._readonly else os.O_RDWR | os.O_CREAT
        while True:
            try:
                fd = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
            except OSError:
                if self._readonly:
                    return  # nothing to read and nowhere to write: nothing to lock either
                raise
            try:
                _flock(fd, f"attachment {_describe(self._key)}", deadline - time.monotonic())
                # The one who had the lock may have removed or replaced the file we opened.
                if _same_file(fd, self.path):
                    self._held.append(fd)
                    return
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def unlock(self) -> None:
        """An empty file has served as a lock only and goes, while it is still ours."""
        if self._held and not self._readonly:
            fd = self._held[-1]
            if os.fstat(fd).st_size == 0 and _same_file(fd, self.path):
                _unlink(self.path)
        while self._held:
            os.close(self._held.pop())

    def read(self) -> Record | None:
        if not self._held:
            return None
        record = _parse(self.path, os.pread(self._held[-1], 1 << 20, 0))
        if record is not None and record.key != self._key:
            raise UnreadableRecord(self.path, f"it belongs to {_describe(record.key)}")
        return record

    def stamp(self) -> Stamp | None:
        return _stamp(os.fstat(self._held[-1])) if self._held else None

    def write(self, record: Record) -> None:
        if self._readonly:
            return
        fresh = self.path + ".new"
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                # Locked before it gets the name, and the old file stays open: no moment without the lock.
                fcntl.flock(fd, fcntl.LOCK_EX)
                _write_all(fd, _render(record))
                os.fsync(fd)
                os.rename(fresh, self.path)
            except BaseException:
                os.close(fd)
                raise
            self._held.append(fd)
            _sync_folder(os.path.dirname(self.path))
        except OSError as e:
            raise _unwritable(fresh, e) from e

    def remove(self) -> None:
        """Empties the file: the name goes with the lock, or another call would take a new file for free."""
        if self._readonly or not self._held:
            return
        try:
            os.ftruncate(self._held[-1], 0)
            _unlink(self.path + ".new")
        except OSError as e:
            raise _unwritable(self.path, e) from e


def file_name(key: Key) -> str:
    """What the file of a record is called."""
    identity = "\0".join((key.network, key.container_id, key.ifname))
    return f"{key.plugin}-{sha256(os.fsencode(identity)).hexdigest()[:32]}.json"


def _stamp(seen: os.stat_result) -> Stamp:
    return Stamp(seen.st_ino, seen.st_mtime_ns, seen.st_size)


def _stamps(folder: str, plugin: str) -> dict[str, Stamp]:
    """The plugin's files in the folder. Raises OSError where that cannot be listed."""
    found: dict[str, Stamp] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # A plugin's name may be the beginning of another's: the hash has a fixed length.
                if entry.name.startswith(f"{plugin}-") and len(entry.name) == len(plugin) + 38:
                    with suppress(FileNotFoundError):  # it went just now
                        found[entry.name] = _stamp(entry.stat(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def _describe(key: Key) -> str:
    return f"{key.ifname} of container {key.container_id} in network {key.network}"


def _render(record: Record) -> bytes:
    document: dict[str, Any] = {
        "v": VERSION,
        "plugin": record.key.plugin,
        "network": record.key.network,
        "containerid": record.key.container_id,
        "ifname": record.key.ifname,
        "netns": {"path": record.netns_path, "inode": record.netns_inode},
        "boot_id": record.boot_id,
        "state": record.state,
        "undo": record.undo,
    }
    if record.guest is not None:
        document["guest"] = record.guest
    return json.dumps(document).encode() + b"\n"


def _parse(path: str, content: bytes) -> Record | None:
    if not content:
        return None
    try:
        document: Any = json.loads(content)
        if isinstance(document["v"], int) and document["v"] > VERSION:
            raise UnreadableRecord(
                path, f"version {document['v']} is newer than {VERSION}, the newest known here", newer=True
            )
        texts = [document[field] for field in ("plugin", "network", "containerid", "ifname")]
        texts += [document["netns"]["path"], document["boot_id"], document["state"]]
        inode, undo, guest = document["netns"]["inode"], document["undo"], document.get("guest")
        if not (
            all(isinstance(text, str) for text in texts)
            and isinstance(inode, int)
            and isinstance(undo, dict)
            and isinstance(guest, dict | None)
        ):
            raise UnreadableRecord(path, "a field has the wrong type")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UnreadableRecord(path, f"not a record: {type(e).__name__}: {e}") from e
    return Record(Key(*texts[:4]), texts[4], inode, texts[5], texts[6], undo, guest)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as e:
        raise UnreadableRecord(path, str(e.strerror)) from e


def _sweep(path: str) -> None:
    """Removes the empty file of a call that died before it recorded anything, unless one is at work."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same_file(fd, path) and os.fstat(fd).st_size == 0:
            _unlink(path + ".new")
            _unlink(path)
    except OSError:
        pass  # somebody holds it, or the folder cannot be written: it stays
    finally:
        os.close(fd)


def _flock(fd: int, what: str, wait_seconds: float) -> None:
    """flock with a deadline: a blocking one could be ended by a signal only, which a thread cannot get."""
    deadline = time.monotonic() + wait_seconds
    pause = 0.001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                raise
        if time.monotonic() >= deadline:
            raise CNIError(TRY_AGAIN_LATER, f"{what}: another call has been working on it for too long")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _same_file(fd: int, path: str) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_folder(folder: str) -> None:
    # Three system calls and an exception less than makedirs where it is there.
    if not os.path.isdir(folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # the point was that it is gone


def _unwritable(path: str, reason: OSError) -> CNIError:
    return CNIError(IO_FAILURE, f"{path} cannot be written: {reason.strerror}")
