"""What every plugin's DEL and GC do with the records, whatever it is that they remove."""

from __future__ import annotations

from collections.abc import Callable

from cnvnet.attachments import DELETING, Attachments, Key, Record, Slot, UnreadableRecord
from cnvnet.attempts import Attempts
from cnvnet.cni.errors import CNIError
from cnvnet.diagnostics import say


def delete(attachments: Attachments, key: Key, remove: Callable[[Record | None], None]) -> None:
    """Removes an attachment, its record last: should `remove` raise, the next DEL knows as much as this one.

    `remove` gets None when there is no record, or none that can be read; it finds the attachment without it.
    A damaged record goes too, what a newer program wrote stays where it is.
    """
    with attachments.locked(key, optional=True) as slot:
        try:
            record = slot.read()
        except UnreadableRecord as e:
            say(e.msg)
            remove(None)
            if not e.newer:
                slot.remove()
            return
        if record is not None:
            _mark(slot, record)
        remove(record)
        slot.remove()


def collect(
    attachments: Attachments,
    plugin: str,
    network: str,
    valid: set[tuple[str, str]],
    delete_one: Callable[[Key], None],
) -> Attempts:
    """A GC: every attachment of the network but these (container id, ifname) is deleted; what went wrong."""
    tries = Attempts()
    for key in list(attachments.of_network(plugin, network)):
        if (key.container_id, key.ifname) not in valid:
            tries.attempt(f"{key.ifname} of {key.container_id}", delete_one, key)
    return tries


def _mark(slot: Slot, record: Record) -> None:
    try:
        # Nobody is to serve a guest whose attachment is going.
        slot.write(record._replace(state=DELETING, guest=None))
    except CNIError as e:
        say(e.msg)  # a full disk must not keep an attachment from being deleted
