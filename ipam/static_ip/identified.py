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
    policy = config.policy
    if config.pod is not None and config.store.kind == SQLITE and not config.written_release:
        # Of one node's leases no controller ends those of VMs that are deleted: only an operator who asks
        # for it by the key, and releases them with cnvctl, gets leases that outlive the pod.
        policy = policy._replace(release=POD)
    return config._replace(
        subject=subject,
        policy=policy,
        addresses=(*_requests(asked.addresses, foreign), *config.addresses),
        mac=mac.mac,
        mac_where=mac.where,
        mac_yields=mac.yields,
        remarks=(*config.remarks, *asked.remarks, *mac.remarks, *_ignored(config, foreign)),
    )


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
