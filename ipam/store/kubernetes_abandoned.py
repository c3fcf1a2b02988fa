"""Holds of pods that ended without a DEL: a runtime that has lost its notes of a sandbox never asks for one.

Multus calls no plugin whose cached configuration is damaged or gone, and a secondary plugin gets no GC. Such
a hold ends where nothing speaks for it any more, neither the node nor the API.
"""

from __future__ import annotations

import os
import time
from typing import Final

from cnvnet.ipam.lease import Holder
from cnvnet.ipam.store import holds
from cnvnet.ipam.store.holds import Hold, Holds
from cnvnet.kube.api import Api, NotFound
from cnvnet.kube.ended import pod_uids
from cnvnet.kube.resources import PODS

# Seconds until the API is asked again for a pod that was there.
_PAUSE: Final = 60.0


class AbandonedHolds:
    """Looks for them, again and again. Not for several threads."""

    def __init__(self, api: Api, held: Holds) -> None:
        self._api = api
        self._holds = held
        # Without a namespace at the last look.
        self._suspects: list[Hold] = []
        # When the pods of suspects were found in the API, in time.monotonic's seconds.
        self._asked: dict[tuple[str, str, str], float] = {}

    def release(self) -> None:
        """Mark as ended what had no namespace at two looks, and whose pod is gone. CNIError 5, ApiError."""
        held = [each for each in self._holds.all() if each.state == holds.HELD]
        suspects, self._suspects = self._suspects, []
        for hold in held:
            holder = hold.holder
            if holder is None or not holder.pod_uid or not _has_gone(holder):
                continue
            self._suspects.append(hold)
            if hold not in suspects or time.monotonic() < self._asked.get(hold.interface, -_PAUSE) + _PAUSE:
                continue
            if self._is_replaced(hold, holder, held):
                self._holds.replace(hold, hold._replace(state=holds.RELEASING))
            else:
                self._asked[hold.interface] = time.monotonic()
        known = {each.interface for each in self._suspects}
        self._asked = {key: moment for key, moment in self._asked.items() if key in known}

    def _is_replaced(self, hold: Hold, holder: Holder, held: list[Hold]) -> bool:
        """Whether the pod is not in the API any more, or has another sandbox on this node by now."""
        namespace, _, name = holder.pod.partition("/")
        try:
            document = self._api.get(PODS, name, namespace)
        except NotFound:
            return True
        if holder.pod_uid not in pod_uids(document):
            return True
        others = (each.holder for each in held if each.network == hold.network and each != hold)
        return any(
            each is not None
            and (each.pod_uid, each.ifname) == (holder.pod_uid, holder.ifname)
            and each.since >= holder.since
            and _is_there(each)
            for each in others
        )


def _has_gone(holder: Holder) -> bool:
    """Whether the path of its namespace leads elsewhere, seen from where such paths are."""
    return bool(holder.inode) and _is_visible(holder.netns) and not _is_there(holder)


def _is_visible(path: str) -> bool:
    # An agent in a container may not see the folder; a process's own goes with it.
    return path.startswith("/proc/") or os.path.isdir(os.path.dirname(path))


def _is_there(holder: Holder) -> bool:
    try:
        return os.stat(holder.netns).st_ino == holder.inode
    except (OSError, ValueError):
        return False
