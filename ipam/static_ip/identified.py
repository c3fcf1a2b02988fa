"""The configuration of an ADD together with what is known about its VM. Pure.

Which annotation counts is decided in `cnvnet.vm.requests`; here what that means for the ranges.
"""

from __future__ import annotations

from collections.abc import Iterator

from cnvnet.ipam.allocation import AddressRequest
from cnvnet.ipam.lease import POD
from cnvnet.ipam.static_ip.config import Config
from cnvnet.ipam.store.ref import SQLITE
from cnvnet.vm import requests
from cnvnet.vm.launcher import Subject
from cnvnet.vm.requests import AnnotatedAddress, Others


def identified(config: Config, subject: Subject, others: Others) -> Config:
    """The configuration for this VM's interface: annotations ask for addresses before the call does.

    Raises InvalidConfig naming an annotation that cannot be met.
    """
    asked = requests.addresses(subject, others)
    mac = requests.mac(subject, config.mac, config.mac_where, others)
    foreign = [each for each in asked.addresses if each.is_foreign and config.pool.set_of(each.ip) is None]
    release = _release(config)
    return config._replace(
        subject=subject,
        policy=config.policy._replace(release=release),
        addresses=(*_requests(asked.addresses, foreign), *config.addresses),
        mac=mac.mac,
        mac_where=mac.where,
        mac_yields=mac.yields,
        remarks=(
            *config.remarks,
            *asked.remarks,
            *mac.remarks,
            *_ignored(config, foreign),
            *_contradicted(config, release),
        ),
    )


def _release(config: Config) -> str:
    """The release policy: the configuration's, else what the pod says, else the default of the store."""
    if config.written_release:
        return config.policy.release
    # Of one node's leases no controller ends those of VMs that are deleted: only an operator who asks
    # for it by the key, and releases them with cnvctl, gets leases that outlive the pod.
    is_nodes = config.pod is not None and config.store.kind == SQLITE
    return POD if is_nodes or config.persists is False else config.policy.release


def _contradicted(config: Config, release: str) -> Iterator[str]:
    if config.persists is not None and config.persists != (release != POD):
        why = f"ipam.release: {release}" if config.written_release else "a node's leases end with their pods"
        yield f"args.cni.persistIP: {str(config.persists).lower()} ignored: {why}"


def _requests(
    asked: tuple[AnnotatedAddress, ...], foreign: list[AnnotatedAddress]
) -> Iterator[AddressRequest]:
    for each in asked:
        if each not in foreign:
            yield AddressRequest(each.ip, each.where, each.where)


def _ignored(config: Config, foreign: list[AnnotatedAddress]) -> Iterator[str]:
    for each in foreign:
        yield (
            f"{each.where}: {each.ip} ignored: in no range of this network ({config.pool.name}), so it is "
            "meant for another one"
        )
