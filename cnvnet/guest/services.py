"""All services of one guest: the packet loop prepares them once, and then passes each frame to them."""

from __future__ import annotations

from typing import NamedTuple

from cnvnet.guest import arp, dhcp4, dhcp6, frames, ra
from cnvnet.guest.settings import Settings, checked


class Services(NamedTuple):
    """One guest's prepared answers; None where the guest does not have that family."""

    dhcp4: dhcp4.Dhcp4Offer | None
    dhcp6: dhcp6.Dhcp6Offer | None
    ra: ra.RaOffer | None
    neighbours: arp.Neighbours


class FrameAnswer(NamedTuple):
    """What one frame leads to: the service concerned, its counter that goes up, frames for the same tap."""

    service: str
    event: str
    frames: tuple[bytes, ...]


# No service is concerned: the guest's ordinary traffic.
PASSED = FrameAnswer("none", frames.OTHER_TRAFFIC, ())


def prepare(settings: Settings) -> Services:
    """Everything encoded that can be. InvalidConfig names a key of the settings that cannot be used."""
    settings = checked(settings)
    return Services(
        dhcp4.prepare(settings), dhcp6.prepare(settings), ra.prepare(settings), arp.prepare(settings)
    )


def answer(services: Services, frame: bytes) -> FrameAnswer:
    """The answer to any frame from a guest's tap. It never raises, whatever the frame is."""
    kind = frame[12:14]
    if kind == frames.ETHERTYPE_ARP and services.neighbours.known:
        return _counted("arp", arp.reply(services.neighbours, frame))
    if kind == frames.ETHERTYPE_IPV4 and services.dhcp4 is not None:
        return _counted("dhcp4", dhcp4.reply(services.dhcp4, frame))
    if kind == frames.ETHERTYPE_IPV6:
        return _answer6(services, frame)
    return PASSED


def _answer6(services: Services, frame: bytes) -> FrameAnswer:
    protocol = frame[20] if len(frame) > 54 else 0
    if protocol == frames.PROTOCOL_UDP and services.dhcp6 is not None:
        return _counted("dhcp6", dhcp6.reply(services.dhcp6, frame))
    if protocol != frames.PROTOCOL_ICMP6:
        return PASSED
    if frame[54] == ra.SOLICITATION and services.ra is not None:
        return _counted("ra", ra.reply(services.ra, frame))
    if frame[54] == arp.SOLICITATION and services.neighbours.known:
        return _counted("nd", arp.reply6(services.neighbours, frame))
    return PASSED


def _counted(service: str, reply: frames.Reply) -> FrameAnswer:
    if reply.event == frames.OTHER_TRAFFIC:
        return PASSED
    return FrameAnswer(service, reply.event, reply.frames)


def announcements(services: Services) -> tuple[bytes, ...]:
    """What is to be sent unasked, at the start and every few minutes."""
    return (ra.advertise(services.ra),) if services.ra is not None else ()
