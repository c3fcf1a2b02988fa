"""What is counted, under which labels, and that no tenant makes more of them than there may be."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from cnvnet.agent.calls.call_log import FinishedCall
from cnvnet.agent.metrics import OTHER, Metrics, Networks
from cnvnet.cni.errors import CNIError
from cnvnet.cni.skel import Response


def shown(metrics: Metrics) -> list[str]:
    return [line for line in generate_latest(metrics.registry).decode().splitlines() if line[0] != "#"]


def test_a_call_is_counted_by_its_code_and_timed() -> None:
    metrics = Metrics(Networks())
    env = {"CNI_COMMAND": "ADD"}
    metrics.observe_call(FinishedCall("cnv-bridge", env, {}, Response(0, b"", b""), 0.002, 0.0))
    refused = Response(1, b"{}", b"", error=CNIError(7, "x"))
    metrics.observe_call(FinishedCall("cnv-bridge", env, {}, refused, 0.2, 0.0))
    lines = shown(metrics)
    for code in "07":
        assert f'cnvnet_cni_calls_total{{code="{code}",command="ADD",plugin="cnv-bridge"}} 1.0' in lines
    assert 'cnvnet_cni_call_duration_seconds_count{command="ADD",plugin="cnv-bridge"} 2.0' in lines


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CNIError(11, "network n: no IP addresses available in range set: 10.0.0.1-10.0.0.6"), "exhausted"),
        (CNIError(11, "network n: all taken", "no IP addresses available in range set: x"), "exhausted"),
        (CNIError(11, "another call has been working on it for too long"), "busy"),
        (CNIError(7, "CNI_ARGS IP: 10.10.0.172 is held by VM default/vm-a"), "refused"),
        (CNIError(5, "leases.db: damaged"), "store"),
        (CNIError(999, "internal error"), "internal"),
    ],
)
def test_why_no_address_was_given(error: CNIError, reason: str) -> None:
    metrics = Metrics(Networks())
    metrics.observe_refusal("n", error)
    line = f'cnvnet_ipam_allocation_failures_total{{network="n",reason="{reason}"}} 1.0'
    assert line in shown(metrics)


def test_networks_beyond_the_limit_are_one() -> None:
    networks = Networks(most=2)
    assert [networks.label(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]


def test_a_name_that_no_object_of_kubernetes_has_is_no_label() -> None:
    networks = Networks()
    assert [networks.label("n" * size) for size in (253, 254)] == ["n" * 253, OTHER]
