"""Mistakes of the relay's own: the client learns that there was one, the log what it was, and others go on."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from orbital_protocol import ZERO_HASH, codec, frames
from orbital_protocol.codes import CloseCode, ErrorCode
from orbital_protocol.frames import SubscribeGroup
from orbital_relay.handlers.posts import Posts
from orbital_relay.handlers.subscriptions import Live
from orbital_relay.store import events
from tests.people import Person, found_group, new_id
from tests.relays import relay_here
from tests.stage import Stage, stage_on
from tests.talk import Refused, Talk, post_thread, talking

FRAMES_A_TURN = 64

LIMIT_S = 15
SECRET = "what no client and no log may see"


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError(SECRET)


async def fail_later(*_: Any, **__: Any) -> Any:
    fail()


@pytest_asyncio.fixture
async def stage(migrated_database: str) -> AsyncIterator[Stage]:
    async with stage_on(migrated_database) as stage:
        yield stage


@pytest_asyncio.fixture
async def ann(stage: Stage) -> Person:
    [ann] = await stage.people(1)
    return ann


def logged(capsys: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    """The lines of this event; the secret must not be anywhere."""
    text = capsys.readouterr().err
    assert SECRET not in text
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if line["event"] == event]


def check_silent(talk: Talk) -> None:
    assert not [error for error in talk.strays if SECRET in error.message]
    assert SECRET not in (talk.socket.close_reason or "")


@pytest.mark.produces(CloseCode.INTERNAL)
async def test_a_defect_in_the_read_loop_closes_that_connection(
    stage: Stage, ann: Person, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = codec.decode_request
    monkeypatch.setattr(codec, "decode_request", lambda raw: fail() if b"poison" in bytes(raw) else decode(raw))
    token = await stage.token(ann)
    async with relay_here(stage.dsn) as url, talking(url, token) as other, talking(url, token) as talk:
        await talk.socket.send(b"\xa6poison")
        assert await talk.closed() == CloseCode.INTERNAL
        assert talk.socket.close_reason == "internal"
        check_silent(talk)
        await other.ask(frames.Ping)
    [line] = logged(capsys, "session.failed")
    assert line["level"] == "error"
    assert line["error"] == "RuntimeError"
    assert any("session.py" in place for place in line["traceback"])


@pytest.mark.produces(CloseCode.INTERNAL)
async def test_a_defect_in_a_replay_closes_its_connection(
    stage: Stage, ann: Person, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Better than a subscription that looks alive, and brings nothing."""
    monkeypatch.setattr(events, "read_replay", fail_later)
    group_id = await found_group(stage.sql, ann)
    async with relay_here(stage.dsn) as url, talking(url, await stage.token(ann)) as talk:
        groups = [SubscribeGroup(group_id=group_id, after_seq=0, after_hash=ZERO_HASH)]
        await talk.ask(frames.Subscribe, groups=groups)
        assert await talk.closed() == CloseCode.INTERNAL
        check_silent(talk)
    assert len(logged(capsys, "session.failed")) == 1


@pytest.mark.produces(ErrorCode.INTERNAL)
async def test_a_defect_in_a_request_is_answered_and_the_connection_goes_on(
    stage: Stage, ann: Person, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in what is looked at before the writer gets it; and the requests behind it are carried out."""
    thread = Posts.thread
    monkeypatch.setattr(Live, "cursor_get", fail_later)
    monkeypatch.setattr(
        Posts,
        "thread",
        lambda self, caller, request: fail() if request.key_epoch == 9 else thread(self, caller, request),
    )
    group_id = await found_group(stage.sql, ann)
    async with relay_here(stage.dsn) as url, talking(url, await stage.token(ann)) as talk:
        requests: list[frames.Request] = [
            frames.CursorGet(id=talk.next_id(), group_id=group_id, name="read"),
            frames.ThreadPost(
                id=talk.next_id(),
                group_id=group_id,
                key_epoch=9,
                thread_id=new_id(),
                encrypted_title=b"t",
                encrypted_body=b"b",
            ),
        ]
        for future in [talk.send(request) for request in requests]:
            with pytest.raises(Refused) as refused:
                await future
            assert refused.value.code == ErrorCode.INTERNAL
            assert refused.value.error.retry_after_ms
            assert SECRET not in refused.value.error.message
        await post_thread(talk, group_id)
    lines = logged(capsys, "request.failed")
    assert [line["request"] for line in lines] == ["cursor.get", "thread.post"]


# ── not to be one ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_message_of_many_frames_lets_others_have_their_turn(
    stage: Stage, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two turns of the loop, one connection has but so many of its frames looked at."""
    decode = codec.decode_request
    taken, most = 0, 0

    def counted(raw: bytes | memoryview) -> frames.Request:
        nonlocal taken, most
        if not taken:
            asyncio.get_running_loop().call_soon(turn)
        taken += 1
        most = max(most, taken)
        return decode(raw)

    def turn() -> None:
        nonlocal taken
        taken = 0

    monkeypatch.setattr(codec, "decode_request", counted)
    async with relay_here(stage.dsn) as url, talking(url, await stage.token(ann)) as talk:
        await talk.socket.send(b"\x80" * 2_000)
        await talk.ask(frames.Ping)
        assert len(talk.strays) == 2_000
    assert 1 < most <= FRAMES_A_TURN
