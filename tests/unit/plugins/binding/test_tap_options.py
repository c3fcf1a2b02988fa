"""The keys of a tap."""

from __future__ import annotations

from typing import Any

import pytest

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Fields
from cnvnet.kernel.tap import CreateTap
from cnvnet.plugins.binding.tap_options import TapOptions


def test_without_keys_the_tap_is_qemus_and_has_one_queue() -> None:
    assert TapOptions.parse(Fields({})).operation("tap0") == CreateTap("tap0", 107, 107)


def test_every_key_counts() -> None:
    options = TapOptions.parse(
        Fields({"Owner": 0, "group": 36, "queues": 4, "selinuxContext": "system_u:system_r:container_t:s0"})
    )
    context = "system_u:system_r:container_t:s0"
    assert options.operation("tap1") == CreateTap("tap1", 0, 36, multi_queue=True, selinux_context=context)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"owner": -1}, "owner: -1 is not between"),
        ({"owner": 2**32 - 1}, "owner: 4294967295 is not between"),  # the kernel's "no user"
        ({"group": "107"}, "group: expected an integer, got a string"),
        ({"queues": 0}, "queues: 0 is not between 1 and 256"),
        ({"queues": 257}, "queues: 257 is not between 1 and 256"),
        ({"queues": True}, "queues: expected an integer"),
        ({"selinuxContext": 1}, "selinuxContext: expected a string"),
        ({"selinuxContext": "a\nb"}, "selinuxContext: .* is not an SELinux context"),
        ({"selinuxContext": "a" * 256}, "selinuxContext: .* is not an SELinux context"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{message}"):
        TapOptions.parse(Fields(keys))
