"""The keys that say how a VM's tap is made: `owner`, `group`, `queues`, `selinuxContext`."""

from __future__ import annotations

from typing import Final, NamedTuple

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.kernel.tap import CreateTap

# The user and the group of QEMU in KubeVirt's launcher (pkg/util NonRootUID).
QEMU: Final = 107
# KubeVirt's own bound, and MAX_TAP_QUEUES in linux/if_tap.h.
MAX_QUEUES: Final = 256
_MAX_ID: Final = 2**32 - 2


class TapOptions(NamedTuple):
    """Who may open the tap, with how many queues, and the SELinux context it is made in ("": ours)."""

    owner: int = QEMU
    group: int = QEMU
    queues: int = 1
    selinux_context: str = ""

    @classmethod
    def parse(cls, fields: Fields) -> TapOptions:
        """Raises InvalidConfig naming the key."""
        context = fields.text("selinuxContext")
        # It becomes the content of a file in /proc, up to the first zero.
        if not (context.isascii() and context.isprintable()) or len(context) > 255:
            raise InvalidConfig(
                f"{fields.path('selinuxContext')}: {context[:40]!r} is not an SELinux context"
            )
        return cls(
            owner=fields.integer("owner", QEMU, minimum=0, maximum=_MAX_ID),
            group=fields.integer("group", QEMU, minimum=0, maximum=_MAX_ID),
            queues=fields.integer("queues", 1, minimum=1, maximum=MAX_QUEUES),
            selinux_context=context,
        )

    @property
    def multi_queue(self) -> bool:
        """QEMU's number of queues is its own; the tap only knows one from many, and the two must agree."""
        return self.queues > 1

    def operation(self, name: str) -> CreateTap:
        """The operation that creates such a tap."""
        return CreateTap(name, self.owner, self.group, self.multi_queue, self.selinux_context)
