"""Sessions with a relay in which clients say anything: valid requests, damaged ones, and bytes that are none at all.

Each time the relay answers or closes, its log knows of no defect, and the next client is served. FUZZ in the
environment says how many conversations are held; a run without it holds a few.
"""

import asyncio
import os
from collections.abc import AsyncIterator

import hypothesis
import pytest
import pytest_asyncio
from hypothesis import strategies as st

from orbital_protocol import codec, frames
from tests.bystander import Bystander, bystander_on
from tests.people import Person
from tests.protocol.strategies import frames as any_frame
from tests.raw_socket import CLOSE, PING, PONG, RawSocket, raw_socket
from tests.relays import RunningRelay, running_relay
from tests.stage import Stage

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # of an example that fails
]

CONVERSATIONS = int(os.environ.get("FUZZ", "200"))
FLAT_KIB = 32 * 1024  # for thousands of conversations as for a few
MARK = b"is anybody there?"
NESTED = (b"\x91", b"\x81\xa1a", b"\xc7\x05\x01")  # an array of one, a map of one, an extension

valid = st.one_of([any_frame(kind) for kind in frames.REQUESTS]).map(codec.encode)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A request with something altered, cut off, put in, repeated, or wrapped around it."""
    raw = draw(valid)
    at = draw(st.integers(0, len(raw) - 1))
    match draw(st.integers(0, 5)):
        case 0:
            return raw[:at] + bytes((raw[at] ^ draw(st.integers(1, 255)),)) + raw[at + 1 :]
        case 1:
            return raw[:at]
        case 2:
            return raw[:at] + draw(st.binary(min_size=1, max_size=40)) + raw[at:]
        case 3:
            return raw[:at] + raw
        case 4:
            return draw(st.sampled_from(NESTED)) * draw(st.integers(1, 3_000)) + raw
        case _:
            return (
                raw[:at]
                + draw(st.sampled_from((b"\xdb\xff\xff\xff\xff", b"\xdd\x7f\xff\xff\xff", b"\xdf\xff\xff\xff\xff")))
                + raw[at:]
            )


message = st.lists(valid | damaged() | st.binary(max_size=200), min_size=1, max_size=4).map(b"".join)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(stage: Stage) -> AsyncIterator[RunningRelay]:
    async with running_relay(stage.dsn) as relay:
        yield relay


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def somebody(relay: RunningRelay, stage: Stage) -> AsyncIterator[Bystander]:
    async with bystander_on(relay, stage) as bystander:
        before_kib = relay.resident_kib()
        yield bystander
        assert relay.resident_kib() - before_kib < FLAT_KIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ann(stage: Stage) -> Person:
    [ann] = await stage.people(1)
    return ann


@hypothesis.settings(max_examples=CONVERSATIONS)
@hypothesis.given(messages=st.lists(message, min_size=1, max_size=6), is_in=st.booleans())
async def test_whatever_comes_the_next_client_is_served(
    somebody: Bystander, stage: Stage, ann: Person, messages: list[bytes], is_in: bool
) -> None:
    token = await stage.token(ann) if is_in else None
    async with raw_socket(somebody.relay.port, token) as raw:
        for data in messages:
            raw.send(data)
        raw.send(MARK, PING)
        await answers_or_closes(raw)
    await somebody.goes_on()


async def answers_or_closes(raw: RawSocket) -> None:
    """Read what comes, until it is the answer to our ping, or the end."""
    try:
        while True:
            opcode, payload = await raw.receive()
            if opcode == CLOSE or (opcode == PONG and payload == MARK):
                return
    except (asyncio.IncompleteReadError, OSError):
        return
