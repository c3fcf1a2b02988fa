"""`args.cni.persistIP`: what a pod says about keeping its addresses, and when it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnvnet.call_context import captured
from cnvnet.cni.errors import InvalidConfig
from cnvnet.vm.directory import Directory
from tests.fakes.launchers import Launchers
from tests.unit.ipam.static_ip.test_cluster import IPAM, ClusterNode

CLUSTER: dict[str, Any] = {}
NODE = {"nodeLocal": True}


@pytest.mark.parametrize(
    ("said", "keys", "release", "remark"),
    [
        (None, CLUSTER, "vm-deleted", ""),
        (True, CLUSTER, "vm-deleted", ""),
        ("true", CLUSTER, "vm-deleted", ""),
        (False, CLUSTER, "pod", ""),
        ("false", CLUSTER, "pod", ""),
        (True, {"release": "pod"}, "pod", "args.cni.persistIP: true ignored: ipam.release: pod"),
        (False, {"release": "never"}, "never", "args.cni.persistIP: false ignored: ipam.release: never"),
        (True, {"release": "never"}, "never", ""),
        (False, NODE, "pod", ""),
        (True, NODE, "pod", "args.cni.persistIP: true ignored: a node's leases end with their pods"),
        (True, {**NODE, "release": "vm-deleted"}, "vm-deleted", ""),
    ],
)
def test_the_network_decides_and_else_the_pod(
    tmp_path: Path,
    directory: Directory,
    launchers: Launchers,
    said: object,
    keys: dict[str, Any],
    release: str,
    remark: str,
) -> None:
    node = ClusterNode(tmp_path, directory)
    with captured() as lines:
        assignment = node.add(
            launchers.start("vm-a"), ipam={**IPAM, **keys}, args={"cni": {"persistIP": said}}
        )
    assert assignment.allocation.lease.release == release
    assert [each for each in lines if "persistIP" in each] == ([remark] if remark else [])


@pytest.mark.parametrize("said", ["maybe", 1, []])
def test_what_is_neither_true_nor_false_is_refused(
    tmp_path: Path, directory: Directory, launchers: Launchers, said: object
) -> None:
    node = ClusterNode(tmp_path, directory)
    with pytest.raises(InvalidConfig, match=r"args\.cni\.persistIP: .*true (n?or) false"):
        node.add(launchers.start("vm-a"), args={"cni": {"persistIP": said}})
