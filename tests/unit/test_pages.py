"""Pages that were read for others: which of them are found again, and for how long."""

import asyncio

import pytest
from msgspec.structs import replace

from orbital_protocol import codec
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event
from orbital_relay import pages
from orbital_relay.pages import Page, Pages
from orbital_relay.ring import header_of

GROUP, OTHER = bytes(15) + b"\x01", bytes(15) + b"\x02"
LIMIT_S = 5


def event(seq: int, body: bytes = b"a body") -> Event:
    return Event(
        group_id=GROUP,
        seq=seq,
        hash=bytes(32),
        kind=Kind.REPLY_POSTED,
        object_id=seq.to_bytes(16, "big"),
        actor_id=OTHER,
        key_epoch=1,
        created_at=1,
        content_hash=bytes(32),
        thread_id=OTHER,
        encrypted_body=body,
    )


def page(*events: Event) -> Page:
    return Page(events, is_last=True)


async def test_a_page_is_found_at_its_place_alone() -> None:
    """Not by who knows the log at another seq: it may have an erasure since, or the reader may not have seen it all."""
    kept = Pages()
    kept.keep((GROUP, 3, 5), found := page(event(4), event(5)))
    assert kept.find((GROUP, 3, 5)) is found
    for place in ((GROUP, 3, 6), (GROUP, 3, 4), (GROUP, 4, 6), (GROUP, 2, 5), (OTHER, 3, 5)):
        assert kept.find(place) is None


async def test_at_the_head_nothing_comes_next() -> None:
    found = Pages().find((GROUP, 5, 5))
    assert found is not None
    assert (found.events, found.frames, found.is_last) == ((), b"", True)


async def test_a_page_is_its_frames() -> None:
    """Whole, or without the ciphertext of kinds that somebody doesn't want."""
    events = event(1), event(2)
    assert page(*events).bytes_for(None) == b"".join(codec.encode(each) for each in events)
    assert page(*events).bytes_for(frozenset({Kind.REPLY_POSTED})) == page(*events).frames
    assert page(*events).bytes_for(frozenset()) == b"".join(codec.encode(header_of(each)) for each in events)


async def test_what_has_no_room_is_not_kept() -> None:
    kept = Pages(max_bytes=3_000)
    kept.keep((GROUP, 0, 9), page(event(1, bytes(1_000))))
    kept.keep((GROUP, 1, 9), page(event(2, bytes(2_500))))
    kept.keep((GROUP, 2, 9), page(event(3, bytes(1_000))))
    assert [kept.find((GROUP, seq, 9)) is not None for seq in range(3)] == [True, False, True]


async def test_an_empty_page_is_not_kept() -> None:
    kept = Pages()
    kept.keep((GROUP, 6, 5), page())
    assert kept.find((GROUP, 6, 5)) is None


async def test_a_page_with_a_file_is_not_kept() -> None:
    """It expires by the clock, and no event says so at that moment."""
    kept = Pages()
    kept.keep((GROUP, 0, 2), page(event(1), replace(event(2), kind=Kind.MEDIA_POSTED)))
    assert kept.find((GROUP, 0, 2)) is None


async def test_pages_are_forgotten_after_a_while_and_leave_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_KEPT_S", 0.01)
    kept = Pages(max_bytes=1_500)
    for seq in range(3):
        kept.keep((GROUP, seq, 9), page(event(seq + 1, bytes(1_000))))
        assert kept.find((GROUP, seq, 9)) is not None
        async with asyncio.timeout(LIMIT_S):
            while kept.find((GROUP, seq, 9)) is not None:
                await asyncio.sleep(0.002)
