"""What the HTTP library's exceptions mean: which of them a fresh connection may cure, and how to say it."""

from __future__ import annotations

import errno
import os
import ssl
from typing import Final

from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
)
from urllib3.exceptions import SSLError as TlsError

# The other machine, or one before it, answers that nothing is there.
_REFUSALS: Final = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH}


class Broken(Exception):
    """The way to the server broke off: a fresh connection may do. The text says how."""


class Refused(Exception):
    """No connection is accepted; the text says how. Asking again at once would be in vain."""


def failure(error: HTTPError | OSError) -> Broken | Refused:
    """The same in this suite's words."""
    number = _number(error)
    if number in _REFUSALS:
        return Refused(f"{_where(error)}{os.strerror(number).lower()}")
    return Broken(f"{_where(error)}{_text(error, number)}")


def _text(error: BaseException, number: int | None) -> str:
    inner = error.original_error if isinstance(error, ProxyError) else error
    if isinstance(inner, TlsError):
        return f"TLS: {_tls_text(inner)}"
    if isinstance(inner, NameResolutionError):
        return "the server's name cannot be resolved"
    if isinstance(inner, ConnectTimeoutError):
        return "no connection in time"
    if isinstance(inner, ReadTimeoutError) or number == errno.ETIMEDOUT:
        return "no answer in time"
    if number is not None:
        return f"the connection broke off: {os.strerror(number).lower()}"
    return "the connection broke off" if isinstance(inner, ProtocolError) else type(inner).__name__


def _tls_text(error: TlsError) -> str:
    for inner in _chain(error):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"the server's certificate cannot be verified: {inner.verify_message}"
        if isinstance(inner, ssl.SSLError) and inner.reason:
            return inner.reason.replace("_", " ").lower()
    return "the connection broke off"


def _where(error: BaseException) -> str:
    return "proxy: " if isinstance(error, ProxyError) else ""


def _number(error: BaseException) -> int | None:
    """The number of the system's error at the bottom."""
    for inner in _chain(error):
        if (
            isinstance(inner, OSError)
            and not isinstance(inner, ssl.SSLError)
            and inner.errno in errno.errorcode
        ):
            return inner.errno
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and those inside it: its cause, and what the library keeps in its arguments."""
    chain: list[BaseException] = []
    rest: list[object] = [error]
    while rest:
        each = rest.pop(0)
        if isinstance(each, BaseException) and each not in chain:
            chain.append(each)
            rest += [each.__cause__, *each.args]
    return chain
