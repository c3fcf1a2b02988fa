"""The TLS context of a client's connections. It imports `ssl`, so only the transport imports it."""

from __future__ import annotations

import os
import ssl

from cnvnet.kube.settings import Secret, Tls


class UnusableTls(Exception):
    """A certificate or key cannot be read or used; the text names it."""


def context(tls: Tls) -> ssl.SSLContext:
    """The context, from files as they are now. UnusableTls."""
    # Not create_default_context(): Python 3.13's demands extensions that authorities of clusters lack.
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    elif tls.authority:
        _trust(made, tls.authority)
    else:
        made.load_default_certs()
    if tls.certificate:
        _present(made, tls.certificate, tls.key)
    return made


def _trust(made: ssl.SSLContext, authority: Secret) -> None:
    what = f"certificate-authority {authority.path}".rstrip()
    text = _read(what, authority)
    try:
        made.load_verify_locations(cadata=text.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise UnusableTls(f"{what}: no certificates") from None


def _present(made: ssl.SSLContext, certificate: Secret, key: Secret) -> None:
    what = f"client-certificate {certificate.path}".rstrip()
    chain, private = _read(what, certificate), _read(f"client-key {key.path}".rstrip(), key)
    # OpenSSL wants a file. One in memory leaves the key on no disk.
    memory = os.memfd_create("client-certificate")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(chain + b"\n" + private)
        made.load_cert_chain(f"/proc/self/fd/{memory}", password=_no_password)
    except (ssl.SSLError, ValueError):
        raise UnusableTls(f"{what}: certificate and key cannot be used, or do not belong together") from None
    finally:
        os.close(memory)


def _no_password() -> str:
    # Without it OpenSSL asks at the terminal.
    raise ValueError("an encrypted key")


def _read(what: str, secret: Secret) -> bytes:
    try:
        return secret.read()
    except OSError as e:
        raise UnusableTls(f"{what}: {(e.strerror or str(e)).lower()}") from e
