"""Records as files, and the locks that serialise calls.

A record is one small file below RUNDIR/attachments, and the file is its own lock: a call that works on an
attachment holds a flock of it. Shared objects (a bridge, a base chain) have lock files in RUNDIR/locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from _thread import get_ident
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from cnvnet.attachment import RUNDIR
from cnvnet.attachment.record import (
    LONGEST,
    FileVersion,
    Key,
    LockedRecord,
    Record,
    UnreadableRecord,
    describe,
    file_name,
    parse,
    render,
)
from cnvnet.call_context import log
from cnvnet.cni.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError
from cnvnet.kernel import flock, private_folder

# Files in RUNDIR are no links, and opening one does not wait.
_OURS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
# Bytes: more than a record has with every guard and a dozen addresses.
_PROBE_BYTES: Final = 8192


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
    return parse(path, _content(path))


def read_all(rundir: str) -> tuple[list[Record], list[UnreadableRecord]]:
    """All records, of every plugin, read without their locks, and those that cannot be read.

    Neither where there is no folder; raises OSError where it cannot be listed.
    """
    try:
        names = sorted(os.listdir(folder(rundir)))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    records: list[Record] = []
    unreadable: list[UnreadableRecord] = []
    for name in names:
        # A record that is being written is called *.json.new.
        if not name.endswith(".json"):
            continue
        try:
            record = read(rundir, name)
        except UnreadableRecord as e:
            unreadable.append(e)
            continue
        if record is not None:
            records.append(record)
    return records, unreadable


class AttachmentFiles:
    """Attachments as files below `rundir`."""

    def __init__(self, rundir: str) -> None:
        self._rundir = rundir
        self._records = folder(rundir)
        self._locks = os.path.join(rundir, "locks")

    @contextmanager
    def locked(
        self, key: Key, *, wait_seconds: float = 10.0, optional: bool = False
    ) -> Generator[LockedRecord]:
        """The record of an attachment, locked for the block.

        Code 11: another call holds it for longer than `wait_seconds`. Code 5: the folder cannot be written,
        unless `optional`.
        """
        locked = _LockedFile(os.path.join(self._records, file_name(key)), key, readonly=False)
        try:
            private_folder.ensure(self._rundir, self._records)
            locked.lock(wait_seconds)
        except OSError as e:
            if not optional:
                raise _unwritable(self._records, e) from e
            log(f"{self._records}: {e.strerror}: going on without writing records")
            locked = _LockedFile(locked.path, key, readonly=True)
            locked.lock(wait_seconds)
        try:
            yield locked
        finally:
            locked.unlock()

    def read(self, key: Key) -> Record | None:
        """The record as it is now, without its lock; None without one. UnreadableRecord."""
        return read(self._rundir, file_name(key))

    def of_network(self, plugin: str, network: str) -> Iterator[Key]:
        """The attachments of a plugin in a network that have a record."""
        for record in self.records(plugin):
            if record.key.network == network:
                yield record.key

    def records(self, plugin: str) -> Iterator[Record]:
        """All records of a plugin, read without their locks; none where the folder cannot be read."""
        try:
            for _, record in self.changed(plugin, {}):
                if record is not None:
                    yield record
        except OSError:
            return

    def changed(self, plugin: str, seen: dict[str, FileVersion]) -> Iterator[tuple[str, Record | None]]:
        """Each record that was written or removed (None) since `seen`, which is brought up to date."""
        current = versions(self._records, plugin)
        for name in [name for name in seen if name not in current]:
            del seen[name]
            yield name, None
        for name in sorted(name for name, version in current.items() if seen.get(name) != version):
            # The version is older than the content: a record that is replaced meanwhile is read once more.
            seen[name] = current[name]
            path = os.path.join(self._records, name)
            try:
                record = parse(path, _content(path))
            except UnreadableRecord as e:
                # Not remembered: it may be readable the next time.
                del seen[name]
                log(e.msg)
                record = None
            else:
                if record is None:
                    _sweep(path)
            yield name, record if record is not None and record.key.plugin == plugin else None

    @contextmanager
    def shared(self, name: str) -> Generator[None]:
        """Hold the lock of something that attachments share, by its name.

        Code 11: it is held for too long.
        """
        path = os.path.join(self._locks, name.replace("/", "_"))
        try:
            private_folder.ensure(self._rundir, self._locks)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | _OURS, 0o600)
        except OSError as e:
            raise _unwritable(self._locks, e) from e
        try:
            _acquire(fd, f"lock {path}", 60.0)
            yield
        finally:
            os.close(fd)

    def ensure_writable(self) -> None:
        """Raises CNIError 5 naming the folder when no record could be written."""
        probe = os.path.join(self._records, f".probe-{os.getpid()}-{get_ident()}")
        try:
            private_folder.ensure(self._rundir, self._records)
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | _OURS, 0o600)
            try:
                # A full disk still makes empty files.
                _write_all(fd, bytes(_PROBE_BYTES))
                os.fsync(fd)
            finally:
                os.close(fd)
                os.unlink(probe)
        except OSError as e:
            raise _unwritable(self._records, e) from e


class _LockedFile:
    """A record's file. It exists, empty, while a call holds the lock and nothing has been recorded yet."""

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
                fd = os.open(self.path, flags | _OURS, 0o600)
            except OSError as e:
                if self._readonly:
                    return  # no record to read and no folder to write: there is nothing to lock
                if e.errno not in (errno.ELOOP, errno.ENXIO):
                    raise
                self._clear()
                continue
            try:
                _acquire(fd, f"attachment {describe(self._key)}", deadline - time.monotonic())
                # The previous holder may have removed or replaced the file that was opened here.
                if _same_file(fd, self.path):
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        self._held.append(fd)
                        return
                    self._clear()
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _clear(self) -> None:
        """Removes a link, FIFO or socket that has the record's name: no program of ours makes one there."""
        log(f"record {self.path}: it was no file, and has been removed")
        _unlink(self.path)

    def unlock(self) -> None:
        """Removes an empty file, which was a lock only, while it is still locked here."""
        if self._held and not self._readonly:
            fd = self._held[-1]
            if os.fstat(fd).st_size == 0 and _same_file(fd, self.path):
                _unlink(self.path)
        while self._held:
            os.close(self._held.pop())

    def read(self) -> Record | None:
        if not self._held:
            return None
        record = parse(self.path, os.pread(self._held[-1], LONGEST, 0))
        if record is not None and record.key != self._key:
            raise UnreadableRecord(self.path, f"it belongs to {describe(record.key)}")
        return record

    def version(self) -> FileVersion | None:
        return FileVersion.of(os.fstat(self._held[-1])) if self._held else None

    def write(self, record: Record) -> None:
        if self._readonly:
            return
        fresh = self.path + ".new"
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _OURS, 0o600)
            try:
                # Locked before it gets the name, while the old file stays locked: the lock is never free in
                # between.
                fcntl.flock(fd, fcntl.LOCK_EX)
                _write_all(fd, render(record))
                os.fsync(fd)
                os.rename(fresh, self.path)
            except BaseException:
                os.close(fd)
                raise
            self._held.append(fd)
            private_folder.sync(os.path.dirname(self.path))
        except OSError as e:
            raise _unwritable(fresh, e) from e

    def remove(self) -> None:
        """Empties the file, which `unlock` removes.

        Without the name another call would lock a new file meanwhile.
        """
        if self._readonly or not self._held:
            return
        try:
            os.ftruncate(self._held[-1], 0)
            _unlink(self.path + ".new")
        except OSError as e:
            raise _unwritable(self.path, e) from e


def versions(folder: str, plugin: str = "") -> dict[str, FileVersion]:
    """The files of a plugin's records, or of all, by name; none where there is no folder.

    Raises OSError where it cannot be listed.
    """
    versions_by_name: dict[str, FileVersion] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_record(entry.name, plugin):
                    with suppress(FileNotFoundError):  # it went just now
                        versions_by_name[entry.name] = FileVersion.of(entry.stat(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return versions_by_name


def _is_record(name: str, plugin: str) -> bool:
    # A record that is being written is called *.json.new.
    if not plugin:
        return name.endswith(".json")
    # A plugin's name may be the beginning of another's: the hash has a fixed length.
    return name.startswith(f"{plugin}-") and len(name) == len(plugin) + 38


def _content(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | _OURS)
    except FileNotFoundError:
        return b""
    except OSError as e:
        reason = "a link" if e.errno == errno.ELOOP else str(e.strerror)
        raise UnreadableRecord(path, reason) from e
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UnreadableRecord(path, "not a regular file")
        content = os.read(fd, LONGEST + 1)
    except OSError as e:
        raise UnreadableRecord(path, str(e.strerror)) from e
    finally:
        os.close(fd)
    if len(content) > LONGEST:
        raise UnreadableRecord(path, f"longer than {LONGEST} bytes")
    return content


def _sweep(path: str) -> None:
    """Removes the empty file of a call that died before it recorded anything, unless one is at work."""
    try:
        fd = os.open(path, os.O_RDWR | _OURS)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same_file(fd, path) and os.fstat(fd).st_size == 0:
            _unlink(path + ".new")
            _unlink(path)
    except OSError:
        pass  # a call holds it, or the folder cannot be written: it stays
    finally:
        os.close(fd)


def _acquire(fd: int, what: str, wait_seconds: float) -> None:
    """The lock of an open file. CNIError 11 after `wait_seconds`."""
    try:
        flock.acquire(fd, wait_seconds)
    except TimeoutError as e:
        raise CNIError(TRY_AGAIN_LATER, f"{what}: another call has been working on it for too long") from e


def _same_file(fd: int, path: str) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # the point was that it is gone


def _unwritable(path: str, reason: OSError) -> CNIError:
    return CNIError(IO_FAILURE, f"{path} cannot be written: {reason.strerror}")
