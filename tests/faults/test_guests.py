"""Frames that no sane guest sends, through the codecs; every answer is read by an independent witness."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from cnvnet.guest import services
from tests.faults.conftest import TIMES
from tests.functional.guest.test_fuzz import SHORTEST, damaged
from tests.unit.guest.test_bpf import received
from tests.unit.guest.test_services import BRIDGED, GUEST, is_sound

pytestmark = [pytest.mark.alone, pytest.mark.timeout(120 + 60 * TIMES)]

COUNT = 25_000 * TIMES


@pytest.mark.parametrize("guest", [GUEST, BRIDGED], ids=["masquerade", "bridged"])
def test_no_frame_upsets_the_codecs(guest: services.Services) -> None:
    events = Counter[str]()
    for sent in islice(damaged(11), COUNT):
        arriving = received(guest, sent) if len(sent) >= SHORTEST else None
        if arriving is None:
            events["filtered"] += 1
            continue
        answer = services.answer(guest, arriving)
        events[answer.event] += 1
        for frame in answer.frames:
            is_sound(frame)
    assert "failed" not in events
    assert events["offer"] > COUNT / 100, events
    assert events["malformed"] > COUNT / 100, events
