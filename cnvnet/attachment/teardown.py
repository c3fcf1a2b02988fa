"""What DEL and GC of every plugin do with the records."""

from __future__ import annotations

from collections.abc import Callable

from cnvnet.attachment.record import DELETING, Attachments, Key, LockedRecord, Record, UnreadableRecord
from cnvnet.attachment.rollback import ErrorCollector
from cnvnet.call_context import log, note_vm
from cnvnet.cni.errors import CNIError


def delete(attachments: Attachments, key: Key, remove: Callable[[Record | None], None]) -> None:
    """Removes an attachment, its record last: if `remove` raises, the next DEL still has it.

    `remove` gets None when there is no record, or none that can be read; it finds the attachment without it.
    A damaged record is removed, too; a newer program's stays where it is.
    """
    with attachments.locked(key, optional=True) as locked:
        try:
            record = locked.read()
        except UnreadableRecord as e:
            log(e.msg)
            remove(None)
            if not e.newer:
                locked.remove()
            return
        if record is not None:
            if record.vm is not None:
                note_vm(str(record.vm))
            _mark(locked, record)
        remove(record)
        locked.remove()


def collect(
    attachments: Attachments,
    plugin: str,
    network: str,
    valid: set[tuple[str, str]],
    delete_one: Callable[[Key], None],
) -> ErrorCollector:
    """GC: deletes the network's attachments but those of `valid`, (container id, ifname); the errors."""
    collector = ErrorCollector()
    for key in list(attachments.of_network(plugin, network)):
        if (key.container_id, key.ifname) not in valid:
            collector.attempt(f"{key.ifname} of {key.container_id}", delete_one, key)
    return collector


def _mark(locked: LockedRecord, record: Record) -> None:
    try:
        # Without `guest` the agent no longer serves the guest of an attachment that is being deleted.
        locked.write(record._replace(state=DELETING, guest=None))
    except CNIError as e:
        log(e.msg)  # a full disk must not keep an attachment from being deleted
