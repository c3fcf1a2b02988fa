"""Certificate authorities of tests, and what they certify: openssl's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple


class Issued(NamedTuple):
    """Files of a certificate and its key."""

    certificate: str
    key: str


_EXTENSIONS = "subjectAltName={}\nextendedKeyUsage=serverAuth,clientAuth"


class Authority:
    """One made anew in `folder`, whose files are called after `name`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._own = self._request(name)
        self._sign(name, "basicConstraints=critical,CA:TRUE", "-signkey", self._own.key)

    @property
    def certificate(self) -> str:
        return self._own.certificate

    def issue(self, name: str, alternative: str = "IP:127.0.0.1") -> Issued:
        """A certificate for servers and clients; `alternative` as in openssl's subjectAltName."""
        issued = self._request(name)
        signer = ("-CA", self._own.certificate, "-CAkey", self._own.key, "-CAcreateserial")
        self._sign(name, _EXTENSIONS.format(alternative), *signer)
        return issued

    def _request(self, name: str) -> Issued:
        issued = Issued(self._file(name, "crt"), self._file(name, "key"))
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", issued.key)
        subject = ("-subj", f"/O=tests/CN={name}")
        _openssl("req", "-new", "-key", issued.key, *subject, "-out", self._file(name, "csr"))
        return issued

    def _sign(self, name: str, extensions: str, *signer: str) -> None:
        settings = self._file(name, "cnf")
        Path(settings).write_text(f"{extensions}\n")
        files = ("-in", self._file(name, "csr"), "-extfile", settings, "-out", self._file(name, "crt"))
        _openssl("x509", "-req", "-days", "2", *files, *signer)

    def _file(self, name: str, suffix: str) -> str:
        return str(self._folder / f"{name}.{suffix}")


def _openssl(*args: str) -> None:
    subprocess.run(["openssl", *args], check=True, capture_output=True)
