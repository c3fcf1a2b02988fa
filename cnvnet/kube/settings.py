"""How a client reaches an API server, and how the two prove themselves to each other: values, none printed.

Files that are replaced while the process runs (tokens, certificates) are named, and read when needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Secret(NamedTuple):
    """PEM data or a token: either the name of a file, which may be replaced, or the content."""

    path: str = ""
    content: bytes = b""

    def read(self) -> bytes:
        """The content as it is now. OSError."""
        if not self.path:
            return self.content
        with open(self.path, "rb") as file:
            return file.read()

    def __bool__(self) -> bool:
        return bool(self.path or self.content)

    def __repr__(self) -> str:
        return f"Secret({self.path!r})" if self.path else "Secret(...)" if self.content else "Secret()"


class CredentialPlugin(NamedTuple):
    """A program that prints credentials: the entry `exec` of a kubeconfig's user."""

    command: str
    args: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    api_version: str
    install_hint: str
    # What it reads of the cluster (`spec.cluster`), as JSON; "": it did not ask for that.
    cluster: str

    def __repr__(self) -> str:
        # Arguments and environment may have passwords.
        return f"CredentialPlugin({self.command!r})"


class Tls(NamedTuple):
    """How server and client prove themselves to each other."""

    # None: the system's.
    authority: Secret = Secret()
    # "": the server's own.
    server_name: str = ""
    # False: any server is believed.
    verify: bool = True
    certificate: Secret = Secret()
    key: Secret = Secret()


class Credentials(NamedTuple):
    """All that a client needs. `repr` shows no secrets."""

    # `https://host:port`, and a path if the API is below one.
    server: str
    # The file or folder that they come from, for messages.
    source: str
    # Reads them anew. CNIError.
    reread: Callable[[], Credentials]
    # That of the kubeconfig's context or of the pod.
    namespace: str = "default"
    tls: Tls = Tls()
    token: Secret = Secret()
    plugin: CredentialPlugin | None = None
    # `http://[user:password@]host:port`; "": none.
    proxy: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.server!r}, {self.source!r})"
