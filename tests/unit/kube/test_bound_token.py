"""What a token says of itself."""

from __future__ import annotations

import time

import pytest

from cnvnet.kube.bound_token import TokenClaims, claims
from tests.fakes.tokens import bound_token, token


def test_a_pods_token_names_the_pod() -> None:
    # With characters that base64 has another form of for URLs.
    said = claims(f" {bound_token('cnvnet-agent-x7k', 'ÿ~?-uid')}\n".encode())
    assert said is not None
    assert said[:3] == ("cnvnet-system", "cnvnet-agent-x7k", "ÿ~?-uid")
    assert 3500 < said.expires - time.time() <= 3600


def test_a_token_without_a_pod_has_none() -> None:
    said = claims(token({"exp": 7.5, "kubernetes.io": {"namespace": "a"}}).encode())
    assert said == TokenClaims("a", "", "", 7)


@pytest.mark.parametrize(
    "content",
    [
        *("", "secret", "a.b", "a.b.c", "a.!.c", "a.W10.c", "a.e30.c.d"),
        token("text"),
        token([[]]),
    ],
)
def test_what_is_no_token_of_kubernetes_says_nothing(content: str) -> None:
    assert claims(content.encode()) is None


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"kubernetes.io": [], "exp": "1"},
        {"kubernetes.io": {"namespace": 1, "pod": "x"}, "exp": -1},
        {"kubernetes.io": {"pod": {"name": "a\nb", "uid": "c d"}}, "exp": 1e300},
    ],
)
def test_what_cannot_be_a_name_or_a_time_is_left_out(said: object) -> None:
    assert claims(token(said).encode()) == TokenClaims("", "", "", 0)


def test_why_a_token_is_refused() -> None:
    said = TokenClaims("cnvnet-system", "agent-1", "u1", 100)
    assert said.ended(99) == "the token's pod cnvnet-system/agent-1 is gone, or its ServiceAccount"
    assert said.ended(100) == "the token has expired (1970-01-01T00:01:40Z)"
    assert TokenClaims("cnvnet-system", "", "", 0).ended(100) == ""
