"""The outgoing queue: one write a tick, a bound, and order."""

import asyncio

import pytest

from orbital_relay.outbox import Flusher, Outbox, message


class Wire:
    """A transport that takes what the test lets it take."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.buffered = 0
        self.closing = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def is_closing(self) -> bool:
        return self.closing


async def tick() -> None:
    await asyncio.sleep(0)


def made(limit_bytes: int = 1000) -> tuple[Outbox, Wire]:
    wire = Wire()
    return Outbox(wire, Flusher(asyncio.get_running_loop()), limit_bytes), wire


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_a_message_has_the_header_of_rfc_6455(size: int) -> None:
    data = message(bytes(size))
    assert data[0] == 0x82
    length, rest = data[1], data[2:]
    if length == 126:
        length, rest = int.from_bytes(rest[:2], "big"), rest[2:]
        assert length >= 126
    elif length == 127:
        length, rest = int.from_bytes(rest[:8], "big"), rest[8:]
        assert length >= 65536
    assert length == size == len(rest)


async def test_what_is_queued_in_one_tick_leaves_in_one_write_and_one_message() -> None:
    outbox, wire = made()
    outbox.put_frame(b"one")
    outbox.put_frame(b"two")
    assert not wire.writes
    await tick()
    assert wire.writes == [message(b"onetwo")]


async def test_frames_and_messages_keep_their_order() -> None:
    outbox, wire = made()
    outbox.put_frame(b"1")
    outbox.put_message(message(b"2"))
    outbox.put_frame(b"3")
    await tick()
    assert b"".join(wire.writes) == message(b"1") + message(b"2") + message(b"3")


async def test_a_connection_that_fails_does_not_hold_up_the_others() -> None:
    class Broken(Wire):
        def write(self, data: bytes) -> None:
            raise RuntimeError("no more")

    flusher = Flusher(asyncio.get_running_loop())
    wires = [Wire(), Broken(), Wire(), Broken(), Wire()]
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    for wire in wires:
        Outbox(wire, flusher, 1000).put_frame(b"x")
    for _ in range(3):
        await tick()
    assert [len(wire.writes) for wire in wires] == [1, 0, 1, 0, 1]
    assert len(failures) == 2


async def test_what_is_sealed_hands_over_what_waits_and_takes_nothing_more() -> None:
    outbox, wire = made()
    outbox.pause()
    outbox.put_frame(b"one")
    outbox.put_message(message(b"two"))
    outbox.seal()
    outbox.put_frame(b"three")
    outbox.put_message(message(b"four"))
    outbox.resume()
    await tick()
    assert b"".join(wire.writes) == message(b"one") + message(b"two")
    assert outbox.waiting_bytes == 0


async def test_nothing_is_written_while_the_transport_is_full() -> None:
    outbox, wire = made()
    outbox.pause()
    outbox.put_frame(b"x" * 10)
    await tick()
    assert not wire.writes
    assert outbox.waiting_bytes == 10
    outbox.resume()
    assert wire.writes == [message(b"x" * 10)]
    assert outbox.waiting_bytes == 0


async def test_it_is_full_beyond_its_bound_and_low_below_a_quarter() -> None:
    outbox, _ = made(limit_bytes=100)
    outbox.pause()
    outbox.put_message(bytes(25))
    assert (outbox.is_low, outbox.is_full) == (True, False)
    outbox.put_message(bytes(1))
    assert (outbox.is_low, outbox.is_full) == (False, False)
    outbox.put_message(bytes(75))
    assert (outbox.is_low, outbox.is_full) == (False, True)


async def test_whoever_waits_for_room_goes_on_when_there_is_some() -> None:
    outbox, _ = made(limit_bytes=100)
    outbox.pause()
    outbox.put_message(bytes(50))
    waiting = asyncio.create_task(outbox.wait_low())
    await tick()
    assert not waiting.done()
    outbox.resume()
    await asyncio.wait_for(waiting, 5)


async def test_whoever_waits_for_room_goes_on_when_the_connection_is_lost() -> None:
    outbox, wire = made(limit_bytes=100)
    outbox.pause()
    outbox.put_message(bytes(50))
    waiting = asyncio.create_task(outbox.wait_low())
    await tick()
    wire.closing = True
    outbox.discard()
    outbox.release()
    await asyncio.wait_for(waiting, 5)


async def test_drained_bytes_stand_still_while_the_reader_does() -> None:
    outbox, wire = made()
    outbox.put_message(bytes(10))
    await tick()
    wire.buffered = 10
    assert outbox.drained_bytes == 0
    wire.buffered = 4
    assert outbox.drained_bytes == 6


async def test_one_flusher_serves_many_outboxes_and_goes_on_after_one_that_was_discarded() -> None:
    flusher = Flusher(asyncio.get_running_loop())
    wires = [Wire() for _ in range(3)]
    outboxes = [Outbox(wire, flusher, 100) for wire in wires]
    for outbox in outboxes:
        outbox.put_frame(b"hi")
    outboxes[1].discard()
    await tick()
    assert [len(wire.writes) for wire in wires] == [1, 0, 1]
