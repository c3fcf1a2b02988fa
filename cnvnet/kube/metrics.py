"""What the requests to the Kubernetes API are, for Prometheus: of programs that stay."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from cnvnet.kube.api import FinishedRequest

# Seconds of a request: from a GET in the same rack to one that waits as long as an ADD may.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ApiMetrics:
    """A counter and a histogram, which `register` makes part of a registry."""

    def __init__(self) -> None:
        self._requests = Counter(
            "cnvnet_kubernetes_api_requests",
            "Requests to the Kubernetes API, repeated ones too, by the HTTP status (0: no answer came).",
            ["verb", "resource", "code"],
            registry=None,
        )
        self._seconds = Histogram(
            "cnvnet_kubernetes_api_request_duration_seconds",
            "Seconds until a request to the Kubernetes API was answered or given up; of a watch: began.",
            ["verb", "resource"],
            buckets=_BUCKETS,
            registry=None,
        )

    def register(self, registry: CollectorRegistry) -> None:
        """Both are collected with this registry from now on."""
        registry.register(self._requests)
        registry.register(self._seconds)

    def observe(self, request: FinishedRequest) -> None:
        """A request was made; any thread may say so."""
        self._requests.labels(request.verb, request.resource, str(request.status)).inc()
        self._seconds.labels(request.verb, request.resource).observe(request.seconds)
