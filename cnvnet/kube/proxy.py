"""The proxy before a server, where the kubeconfig names none: by Go's rules, which kubectl follows."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from cnvnet.cni.errors import InvalidConfig
from cnvnet.cni.fields import Address


def environment_proxy(server: str, env: Mapping[str, str]) -> str:
    """The proxy that an environment asks for, as all clients of Kubernetes read it; "" if none.

    HTTPS_PROXY, unless NO_PROXY names the server: "*", an address, a range, a domain and all below it, each
    with a port or without (golang.org/x/net/http/httpproxy). A server on this machine is asked directly.
    InvalidConfig.
    """
    proxy = env.get("HTTPS_PROXY") or env.get("https_proxy") or ""
    if not proxy or is_excluded(server, env.get("NO_PROXY") or env.get("no_proxy") or ""):
        return ""
    return checked(proxy if "://" in proxy else f"http://{proxy}", "HTTPS_PROXY")


def checked(proxy: str, key: str) -> str:
    """A proxy's URL; InvalidConfig, naming the key, for what cannot be one. It may have a password."""
    try:
        url = urlsplit(proxy)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:
            return proxy
    except ValueError:
        pass
    raise InvalidConfig(f"{key}: expected http://HOST:PORT or https://HOST:PORT")


def is_excluded(server: str, no_proxy: str) -> bool:
    """Whether a server's URL is excluded by the value of NO_PROXY, or is on this machine."""
    url = urlsplit(server)
    host, port = (url.hostname or "").rstrip("."), url.port or (80 if url.scheme == "http" else 443)
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    entries = (entry.strip().lower() for entry in no_proxy.split(","))
    return any(_matches(entry, host, port, address) for entry in entries if entry)


def _matches(entry: str, host: str, port: int, address: Address | None) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ip_network(entry, strict=False)
        except ValueError:
            return False
    named, wanted = _split_port(entry)
    if wanted not in ("", str(port)):
        return False
    if (excluded := _address(named)) is not None:
        return excluded == address
    # A leading dot, or "*.", excludes the domain's own name from the exclusion.
    if named.startswith("*."):
        named = named[1:]
    if named.startswith("."):
        return host.endswith(named)
    return host == named or host.endswith(f".{named}")


def _split_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        name, _, port = entry[1:].partition("]")
        return name, port.removeprefix(":")
    # A bare IPv6 address has no port.
    name, _, port = entry.partition(":") if entry.count(":") == 1 else (entry, "", "")
    return name, port


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
