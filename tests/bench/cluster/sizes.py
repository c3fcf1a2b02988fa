"""What a VM and a pod cost the API: requests by kind, bytes of objects, and the controller's sweep of many.

    unshare --net --mount --pid --fork --mount-proc .venv/bin/python -m tests.bench.cluster.sizes

docs/performance.md multiplies these figures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.bench import programs
from tests.bench.cluster.callers import Caller, Document, Sandbox
from tests.bench.cluster.clusters import NAMESPACE, Cluster, Clusters
from tests.bench.nodes import run
from tests.bench.systems import CHECKOUT, SCRATCH
from tests.e2e.audit import counts
from tests.e2e.cnvnet_objects import AGENT, LEASES, RESERVATIONS, SYSTEM
from tests.e2e.kubevirt_objects import INSTANCES, LAUNCHERS, MACHINES

_ACCOUNT: Final = f"system:serviceaccount:{SYSTEM}:{AGENT}"
_LEASES: Final = 10_000
_METRICS: Final = "http://127.0.0.1:2379/metrics"


def requests(cluster: Cluster, caller: Caller) -> None:
    """What the API server's audit log counts for each operation."""
    (pod,) = (Sandbox(each) for each in cluster.pods(1, caller.node))
    # A network's object is looked at once in a while.
    caller.call("ADD", pod)
    caller.call("DEL", pod)
    _counted(cluster, caller, "pod", pod._replace(number=1))
    (running,) = cluster.start_machines(1, caller.node)
    launcher = Sandbox(running.pod)
    _counted(cluster, caller, "VM, first", launcher)
    _counted(cluster, caller, "VM, again", launcher._replace(number=1))
    _counted(cluster, caller, "VM, restart", Sandbox(cluster.restart(running).pod))


def _counted(cluster: Cluster, caller: Caller, what: str, sandbox: Sandbox) -> None:
    for command in ("ADD", "DEL"):
        with cluster.control_plane.audit.calls(_ACCOUNT) as calls:
            caller.call(command, sandbox)
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(counts(calls).items()))
        print(f"{what} {command}: {found}", flush=True)


def objects(cluster: Cluster, caller: Caller) -> None:
    """Bytes of what there is for a VM and a pod, as JSON, which is how etcd has custom resources."""
    (running,) = cluster.start_machines(1, caller.node)
    (pod,) = cluster.pods(1, caller.node)
    api = cluster.control_plane.api
    caller.call("ADD", Sandbox(running.pod))
    (lease,) = (
        each for each in api.get(LEASES.format(NAMESPACE))["items"] if each["spec"]["vm"] == running.name
    )
    path = f"{LEASES.format(NAMESPACE)}/{lease['metadata']['name']}"
    print(f"VMLease, new: {_bytes(api.get(path))}")
    caller.call("ADD", Sandbox(running.pod, 1))
    caller.call("DEL", Sandbox(running.pod))
    print(f"VMLease, once changed, with a pod: {_bytes(api.get(path))}")
    caller.call("DEL", Sandbox(running.pod, 1))
    print(f"VMLease, stopped: {_bytes(api.get(path))}")
    caller.call("ADD", Sandbox(pod))
    for each in api.get(RESERVATIONS)["items"]:
        spec = each["spec"]
        if spec.get("lease", {}).get("name") == lease["metadata"]["name"] or "pod" in spec:
            print(f"IPReservation of {spec['address']} ({'pod' if 'pod' in spec else 'VM'}): {_bytes(each)}")
    caller.call("DEL", Sandbox(pod))
    for kind, collection in (("pod", LAUNCHERS), ("instance", INSTANCES), ("machine", MACHINES)):
        found = api.get(collection.format(NAMESPACE))["items"]
        each = next(each for each in found if running.name in each["metadata"]["name"])
        metadata = {key: value for key, value in each["metadata"].items() if key != "managedFields"}
        print(f"its {kind}: {_bytes(each)}, metadata without the record of fields {_bytes(metadata)}")


def many(cluster: Cluster) -> None:
    """What etcd and the controller take for leases of VMs, each with an address and a MAC."""
    controller = _sweep(cluster)
    before, server = _etcd(cluster), _memory(cluster, "kube-apiserver")
    print(f"controller without leases: {controller}")
    cluster.add_leases(_LEASES)
    grown = (_etcd(cluster) - before) / _LEASES
    print(f"etcd: {grown:.0f} bytes for each of {_LEASES:,} leases with their reservations")
    print(f"kube-apiserver: {server:.0f} MiB before, {_memory(cluster, 'kube-apiserver'):.0f} MiB after")
    print(f"controller with {_LEASES:,} leases: {_sweep(cluster)}")


def _bytes(document: Document) -> int:
    return len(json.dumps(document, separators=(",", ":")))


def _memory(cluster: Cluster, program: str) -> float:
    """MiB that a program of the control plane has in memory."""
    for pid in cluster.control_plane.machine.processes():
        status = Path(f"/proc/{pid}/status").read_text()
        if status.startswith(f"Name:\t{program[:15]}\n"):
            found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
            assert found is not None
            return int(found[1]) / 1024
    raise AssertionError(f"{program} does not run")


def _etcd(cluster: Cluster) -> int:
    """Bytes of etcd's database that are in use."""
    metrics = run("nsenter", f"--net=/proc/{cluster.control_plane.machine.first}/ns/net", *_READ, _METRICS)
    found = re.search(r"^etcd_mvcc_db_total_size_in_use_in_bytes (\S+)$", metrics, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


_READ: Final = (
    "python3",
    "-c",
    "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())",
)


def _sweep(cluster: Cluster) -> str:
    """Seconds and memory of a controller that looks once."""
    controller = CHECKOUT / ".tools/installed/bin/cnvnet-controller"
    begun = time.monotonic()
    with (SCRATCH / "controller").open("w") as output:
        process = subprocess.Popen(
            [controller, "--kubeconfig", cluster.control_plane.kubeconfig(), "--dry-run"],
            stdout=output,
            stderr=output,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    spent = usage.ru_utime + usage.ru_stime
    took = time.monotonic() - begun
    ended = f"exit {process.returncode}, {took:.1f} s ({spent:.1f} of processor time)"
    return f"{ended}, {usage.ru_maxrss / 1024:.0f} MiB"


def main() -> None:
    os.environ["CNV_PEERS"] = str(CHECKOUT / ".tools/bin")
    run("mount", "-t", "tmpfs", "bench", "/run")
    SCRATCH.mkdir()
    folder = Path(tempfile.mkdtemp(prefix="bench.", dir=CHECKOUT / ".tools"))
    try:
        with ExitStack() as undo:
            clusters = Clusters(folder, programs.make(CHECKOUT, folder / "ours"), None, undo)
            requests(clusters.cluster, clusters.agent)
            objects(clusters.cluster, clusters.agent)
            many(clusters.cluster)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
