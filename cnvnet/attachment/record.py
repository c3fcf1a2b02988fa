"""The record of an attachment: what an ADD did, which a DEL takes back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol, cast

from cnvnet.cni.conventions import PodRef
from cnvnet.cni.document import as_object
from cnvnet.cni.errors import IO_FAILURE, TRY_AGAIN_LATER, CNIError
from cnvnet.cni.request import Request

VERSION: Final = 1
ADDING: Final = "adding"
ADDED: Final = "added"
DELETING: Final = "deleting"
# Bytes: a record has a few thousand, and hundreds of thousands where vm-bridge keeps the routes of a router.
LONGEST: Final = 1 << 20


class Key(NamedTuple):
    """Which attachment: GC of one (plugin, network) never deletes another's."""

    plugin: str
    network: str
    container_id: str
    ifname: str

    @classmethod
    def of(cls, plugin: str, request: Request) -> Key:
        """The attachment that a request to a plugin is about."""
        return cls(plugin, request.name, request.container_id, request.ifname)


class RecordedVM(NamedTuple):
    """The VM of an attachment, and the part that the pod had in it at the ADD.

    A role is the call's: the next one would read another. Only `namespace` and `name` are always there: an
    older record, and one from outside Kubernetes, has no more or not all of it.
    """

    namespace: str
    name: str
    uid: str = ""
    # The VirtualMachineInstance.
    vmi: str = ""
    vmi_uid: str = ""
    # As the Kubernetes API has it.
    pod_uid: str = ""
    # One of vm.identity.ROLES, "" in an older record.
    role: str = ""
    # The UID of the migration whose target the pod was.
    migration: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Record(NamedTuple):
    """What an ADD did, written (fsynced) before its first change of the node."""

    key: Key
    # CNI_NETNS, and the namespace's inode: after a reboot, or for another pod, the path may lead elsewhere.
    netns_path: str
    netns_inode: int
    # The boot in which it was written.
    boot_id: str
    # ADDING, ADDED or DELETING.
    state: str
    # What DEL, CHECK and GC need, as JSON; each plugin has keys of its own.
    undo: dict[str, Any]
    # For a binding: the tap's name as `ifname`, and `settings` as cnvnet.guest.settings_json has them. The
    # node's agent serves the guest by it; None: there is none to serve.
    guest: dict[str, Any] | None = None
    # The owners. Older records have neither.
    pod: PodRef | None = None
    vm: RecordedVM | None = None


class UndoKeys(NamedTuple):
    """The undo keys of a record, read without ever raising.

    A key that is missing or of another shape than asked for is empty: what it was about cannot be undone.
    """

    undo: Mapping[str, Any]

    def text(self, key: str) -> str:
        """A string; else empty."""
        return _text(self.undo.get(key))

    def number(self, key: str) -> int:
        """An integer; else 0."""
        value = self.undo.get(key)
        return value if isinstance(value, int) else 0

    def items(self, key: str) -> list[object]:
        """A list of anything; else empty."""
        value = self.undo.get(key)
        return cast("list[object]", value) if isinstance(value, list) else []

    def texts(self, key: str) -> tuple[str, ...]:
        """The strings of a list; else none."""
        return tuple(item for item in self.items(key) if isinstance(item, str))

    def fields(self, key: str) -> dict[str, Any]:
        """An object; else empty."""
        return as_object(self.undo.get(key))


class FileVersion(NamedTuple):
    """A file's identity: a record is replaced, never changed in place."""

    inode: int
    # In nanoseconds since 1970.
    modified: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileVersion:
        """The version of a file by its stat."""
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


class UnreadableRecord(CNIError):
    """The file is not a record that this program can read.

    A `newer` program's is left as it is (code 11). The attachment's DEL removes a damaged one (code 5),
    after it has cleaned up without it.
    """

    def __init__(self, path: str, reason: str, *, newer: bool = False) -> None:
        remedy = "it has been left as it is" if newer else "a DEL of the attachment removes it"
        super().__init__(TRY_AGAIN_LATER if newer else IO_FAILURE, f"record {path}: {reason}; {remedy}")
        self.newer = newer


class LockedRecord(Protocol):
    """The place of one record, locked by the holder of this object.

    `read` raises UnreadableRecord; `write` raises CNIError 5; `remove` does nothing when there is no record.
    `version` is the file's as it is now.
    """

    def read(self) -> Record | None:
        """The record, or None without one. UnreadableRecord."""
        ...

    def version(self) -> FileVersion | None:
        """Which version of the file this is, or None without one."""
        ...

    def write(self, record: Record) -> None:
        """Replace the record, with fsync. Code 5 if it cannot be written."""
        ...

    def remove(self) -> None:
        """Remove the record; it may be gone."""
        ...


class Attachments(Protocol):
    """All records below one RUNDIR.

    `locked` raises code 11 when another call holds the attachment for longer than `wait_seconds`, and code 5
    when RUNDIR cannot be written, unless `optional`: then an existing record is read and nothing
    written. `of_network` and `records` skip and report what they cannot read, and so does `changed`: for a
    process that stays, the records by their file names that are not as `seen` says, None for those that have
    gone; `seen` is brought up to date. It raises OSError where they cannot be listed. `shared` locks what
    several attachments use.
    """

    def locked(
        self, key: Key, *, wait_seconds: float = 10.0, optional: bool = False
    ) -> AbstractContextManager[LockedRecord]:
        """The record of an attachment, locked for the block."""
        ...

    def read(self, key: Key) -> Record | None:
        """The record as it is now, without its lock; None without one. UnreadableRecord."""
        ...

    def of_network(self, plugin: str, network: str) -> Iterator[Key]:
        """The attachments of a plugin in a network that have a record."""
        ...

    def records(self, plugin: str) -> Iterator[Record]:
        """All records of a plugin."""
        ...

    def changed(self, plugin: str, seen: dict[str, FileVersion]) -> Iterator[tuple[str, Record | None]]:
        """Each record that was written or removed (None) since `seen`, which is brought up to date."""
        ...

    def shared(self, name: str) -> AbstractContextManager[None]:
        """Hold the lock of something that attachments share, by its name."""
        ...

    def ensure_writable(self) -> None:
        """Code 5 if no record can be written."""
        ...


def chains(records: Iterable[Record]) -> list[tuple[Record, ...]]:
    """The records of the plugins of one chain, which a runtime called for one interface, as one tuple.

    Sorted by network, container and interface; inside a chain the plugins that end in a pod come last.
    """
    chains: dict[tuple[str, str, str], list[Record]] = {}
    for record in sorted(records, key=lambda each: (each.key[1:], each.key.plugin)):
        chains.setdefault(record.key[1:], []).append(record)
    return [tuple(chain) for chain in chains.values()]


def file_name(key: Key) -> str:
    """What the file of a record is called."""
    identity = "\0".join((key.network, key.container_id, key.ifname))
    return f"{key.plugin}-{sha256(os.fsencode(identity)).hexdigest()[:32]}.json"


def describe(key: Key) -> str:
    """An attachment in words."""
    return f"{key.ifname} of container {key.container_id} in network {key.network}"


def render(record: Record) -> bytes:
    """A record as its file has it."""
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
    if record.pod is not None:
        document["pod"] = record.pod._asdict()
    if record.vm is not None:
        document["vm"] = {name: text for name, text in record.vm._asdict().items() if text}
    return json.dumps(document).encode() + b"\n"


def parse(path: str, content: bytes) -> Record | None:
    """A record from its file, None from an empty one. UnreadableRecord."""
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
        # Surrogates: JSON can spell them, but no name in the kernel or of a file can have them.
        "".join(texts[:4]).encode()
        os.fsencode("".join(texts[4:]))
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UnreadableRecord(path, f"not a record: {type(e).__name__}: {e}") from e
    pod, vm = _pod(document.get("pod")), _vm(document.get("vm"))
    return Record(Key(*texts[:4]), texts[4], inode, texts[5], texts[6], undo, guest, pod, vm)


def _pod(value: object) -> PodRef | None:
    """People alone read it, so a malformed one does not make the record unreadable."""
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, object]", value)
    return PodRef(*(_text(fields.get(name)) for name in PodRef._fields))


def _vm(value: object) -> RecordedVM | None:
    """An older record has "namespace/name"; what is neither that nor an object with both does not count."""
    if isinstance(value, str):
        namespace, _, name = value.partition("/")
        vm = RecordedVM(namespace, name)
    elif isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        vm = RecordedVM(*(_text(fields.get(name)) for name in RecordedVM._fields))
    else:
        return None
    return vm if vm.namespace and vm.name else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
