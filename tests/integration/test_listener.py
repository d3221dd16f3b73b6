"""The listener on a real database: it hears, notices when it doesn't, and what was missed is found."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from orbital_relay import hints
from orbital_relay.caller import LiveSession
from orbital_relay.errors import Unavailable
from orbital_relay.listener import Hears, Listener
from orbital_relay.metrics import Metrics, WakeSource
from orbital_relay.store.pool import Connection, Database, PoolSettings
from tests.people import Person, connected, enroll, found_group, new_id, post_of
from tests.proxy import NOTIFICATION, Proxy, proxied
from tests.readers import append

LIMIT_S = 15
RELAY_HEX = "ef" * 16
OTHER_HEX = "01" * 16
NEVER_MS = 600_000
ECHO_MS = 100
APPLICATION = f"orbital-relay listener {RELAY_HEX}"


@dataclass
class Heard:
    """What the listener passed on."""

    group_ids: list[bytes] = field(default_factory=list)
    sessions: list[LiveSession] = field(default_factory=list)
    wakes: list[tuple[bytes, int, WakeSource]] = field(default_factory=list)
    buried: list[bytes] = field(default_factory=list)
    others: list[hints.Hint] = field(default_factory=list)
    ended: list[bytes] = field(default_factory=list)

    def hears(self) -> Hears:
        return Hears(
            wake=lambda group_id, seq, source: self.wakes.append((group_id, seq, source)),
            bury=self.buried.append,
            hint=self.others.append,
            groups=lambda: self.group_ids,
            sessions=lambda: self.sessions,
            end_sessions=self.ended.extend,
        )


class Flaky(Database):
    """A pool that is out of order for a while."""

    failures = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        if self.failures:
            self.failures -= 1
            raise Unavailable
        async with super().connection() as connection:
            yield connection


@dataclass
class Scene:
    """A group of Ann's on which somebody here listens, and a connection of the test's own."""

    dsn: str
    database: Flaky
    sql: Connection
    ann: Person
    group_id: bytes
    heard: Heard
    metrics: Metrics

    @asynccontextmanager
    async def listening(
        self, dsn: str = "", *, echo_ms: int = NEVER_MS, sweep_ms: int = NEVER_MS
    ) -> AsyncIterator[Listener]:
        """A running listener that has heard of everything so far."""
        listener = Listener(
            database=self.database,
            settings=PoolSettings(dsn or self.dsn),
            relay_hex=RELAY_HEX,
            hears=self.heard.hears(),
            metrics=self.metrics,
            echo_ms=echo_ms,
            sweep_ms=sweep_ms,
        )
        running = asyncio.create_task(listener.run(), name="listener")
        try:
            await until(lambda: listener.is_up)
            self.heard.wakes.clear()
            yield listener
            assert not running.done(), "the listener has ended"
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def post(self, relay_hex: str) -> int:
        """Append a thread as a relay does; its seq."""
        [event] = await append(self.sql, [post_of(self.ann, self.group_id)], relay_hex)
        return event.seq

    async def backend(self) -> int:
        """Wait until the listener has a backend that is idle; its process id."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                pid = await self.sql.fetchval(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND state = 'idle'", APPLICATION
                )
                if pid is not None:
                    return int(pid)
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], object], *, limit_s: float = LIMIT_S) -> None:
    """Wait until something holds; what the listener does is told to nobody else."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest_asyncio.fixture
async def scene(migrated_database: str) -> AsyncIterator[Scene]:
    database = Flaky(PoolSettings(migrated_database, min_size=1, max_size=2), "test")
    await database.open()
    try:
        async with connected(migrated_database) as sql:
            ann = await enroll(sql, "ann")
            group_id = await found_group(sql, ann)
            yield Scene(migrated_database, database, sql, ann, group_id, Heard(group_ids=[group_id]), Metrics())
    finally:
        await database.close()


@pytest_asyncio.fixture
async def proxy(migrated_database: str) -> AsyncIterator[Proxy]:
    async with proxied(migrated_database) as proxy:
        yield proxy


# ── hearing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_it_hears_what_others_say_and_not_what_its_own_relay_appended(scene: Scene) -> None:
    async with scene.listening():
        await scene.post(RELAY_HEX)
        seq = await scene.post(OTHER_HEX)
        await until(lambda: scene.heard.wakes)
        assert scene.heard.wakes == [(scene.group_id, seq, "notify")]


async def test_every_hint_is_passed_on_and_nonsense_is_not(scene: Scene) -> None:
    """Payloads of a later version, cut ones, and none: a relay of tomorrow must not stop one of today."""
    user_id, group_id = new_id(), scene.group_id
    said: list[tuple[str, hints.Hint]] = [
        (hints.revoke(RELAY_HEX, revoked := hints.Revoke("session", user_id, 4501)), revoked),
        (hints.knock(OTHER_HEX, group_id, user_id), hints.Knock(group_id, user_id)),
        (hints.signal(OTHER_HEX, group_id, user_id, b"x"), hints.SignalHint(OTHER_HEX, group_id, user_id, b"x")),
        (hints.cursor(OTHER_HEX, moved := hints.CursorHint(user_id, group_id, "read", 3, bytes(32))), moved),
    ]
    async with scene.listening():
        for nonsense in (
            "",
            "w1",
            "w1 x y:z",
            f"w2 {OTHER_HEX} whatever",
            "r1 a b c",
            "r1 a session zz 4501",
            "\u2603",
        ):
            await scene.sql.execute("SELECT pg_notify('orbital', $1)", nonsense)
        for payload, _ in said:
            await scene.sql.execute("SELECT pg_notify('orbital', $1)", payload)
        await until(lambda: len(scene.heard.others) == len(said))
        assert scene.heard.others == [hint for _, hint in said]
        assert not scene.heard.wakes


# ── the connection lost ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_terminated_backend_is_replaced_and_nothing_is_missed(scene: Scene) -> None:
    """Five times, while events are appended: each is told of, one way or the other, without a sweep or an echo."""
    async with scene.listening() as listener:
        for _ in range(5):
            pid = await scene.backend()
            await scene.post(OTHER_HEX)
            await scene.sql.execute("SELECT pg_terminate_backend($1)", pid)
            last = await scene.post(OTHER_HEX)
            await until(lambda last=last: last in [seq for _, seq, _ in scene.heard.wakes])  # type: ignore[misc]
        await until(lambda: listener.is_up)
        seq = await scene.post(OTHER_HEX)
        await until(lambda: (scene.group_id, seq, "notify") in scene.heard.wakes)


async def test_a_reconnection_during_which_the_pool_is_away_is_tried_again(scene: Scene) -> None:
    async with scene.listening() as listener:
        pid = await scene.backend()
        scene.database.failures = 2
        await scene.sql.execute("SELECT pg_terminate_backend($1, 5000)", pid)
        seq = await scene.post(OTHER_HEX)
        await until(lambda: (scene.group_id, seq, "reconnect") in scene.heard.wakes)
        assert scene.database.failures == 0
        await until(lambda: listener.is_up)


async def test_while_the_database_is_away_it_is_down_and_comes_back_by_itself(scene: Scene, proxy: Proxy) -> None:
    async with scene.listening(proxy.dsn) as listener:
        await proxy.stop()
        await until(lambda: not listener.is_up)
        assert scene.metrics.registry.get_sample_value("orbital_listener_up") == 0
        seq = await scene.post(OTHER_HEX)
        await proxy.start()
        await until(lambda: listener.is_up)
        assert (scene.group_id, seq, "reconnect") in scene.heard.wakes


# ── deaf ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_black_hole_is_noticed_within_a_few_echoes(scene: Scene, proxy: Proxy) -> None:
    """Both ends of the connection believe in it, and nothing passes any more."""
    async with scene.listening(proxy.dsn, echo_ms=ECHO_MS) as listener:
        began = time.monotonic()
        proxy.blacken()
        seq = await scene.post(OTHER_HEX)
        await proxy.accepts(2)
        assert time.monotonic() - began < ECHO_MS / 1000 * 6 + 1
        await until(lambda: (scene.group_id, seq, "reconnect") in scene.heard.wakes)
        await until(lambda: listener.is_up)


async def test_a_connection_that_answers_but_does_not_notify_is_noticed(scene: Scene, proxy: Proxy) -> None:
    """As behind a pooler: SELECT 1 would be none the wiser."""
    async with scene.listening(proxy.dsn, echo_ms=ECHO_MS):
        began = time.monotonic()
        proxy.pipes[0].dropped = frozenset((NOTIFICATION,))
        seq = await scene.post(OTHER_HEX)
        await proxy.accepts(2)
        assert time.monotonic() - began < ECHO_MS / 1000 * 6 + 1
        await until(lambda: (scene.group_id, seq, "reconnect") in scene.heard.wakes)


async def test_one_that_hears_stays(scene: Scene, proxy: Proxy) -> None:
    async with scene.listening(proxy.dsn, echo_ms=20):
        for _ in range(20):
            seq = await scene.post(OTHER_HEX)
            await until(lambda seq=seq: (scene.group_id, seq, "notify") in scene.heard.wakes)  # type: ignore[misc]
        assert proxy.accepted == 1


# ── the sweep ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_sweep_finds_what_no_notification_told(scene: Scene) -> None:
    async with scene.listening(sweep_ms=50):
        seq = await scene.post(RELAY_HEX)
        await until(lambda: (scene.group_id, seq, "sweep") in scene.heard.wakes)


async def test_the_sweep_finds_deleted_groups(scene: Scene) -> None:
    async with scene.listening(sweep_ms=50):
        async with scene.sql.transaction():
            await scene.sql.execute(
                "SELECT append_relay_event_v1($1, $2, 5::SMALLINT, $3, FALSE)",
                *(RELAY_HEX, scene.group_id, scene.ann.user_id),
            )
            await scene.sql.execute("SELECT bury_group_v1($1)", scene.group_id)
        await until(lambda: scene.heard.buried)
        assert scene.heard.buried[0] == scene.group_id


async def test_the_sweep_goes_on_when_the_database_is_back(scene: Scene) -> None:
    async with scene.listening(sweep_ms=20):
        scene.database.failures = 5
        await until(lambda: not scene.database.failures)
        seq = await scene.post(RELAY_HEX)
        await until(lambda: (scene.group_id, seq, "sweep") in scene.heard.wakes)


async def test_the_sweep_notices_an_absent_database_where_nobody_listens(scene: Scene) -> None:
    """Else a relay without clients would be ready for ever, or never again."""
    scene.heard.group_ids = []
    async with scene.listening(sweep_ms=20):
        scene.database._note(up=False)
        await until(lambda: scene.database.is_up)


WAYS_TO_END = {
    "revoked": "UPDATE sessions SET revoked_at = now() WHERE session_id = $1",
    "expired": "UPDATE sessions SET expires_at = now() - interval '1 s' WHERE session_id = $1",
    "deleted": "DELETE FROM sessions WHERE session_id = $1",
    "user disabled": (
        "UPDATE users SET disabled_at = now() WHERE id = (SELECT user_id FROM sessions WHERE session_id = $1)"
    ),
    "password changed": (
        "UPDATE users SET token_epoch = token_epoch + 1 WHERE id = (SELECT user_id FROM sessions WHERE session_id = $1)"
    ),
    "user deleted": "DELETE FROM users WHERE id = (SELECT user_id FROM sessions WHERE session_id = $1)",
    "token deleted": "DELETE FROM bot_tokens WHERE token_id = $1",
    "token expired": "UPDATE bot_tokens SET expires_at = now() - interval '1 s' WHERE token_id = $1",
    "token's user disabled": (
        "UPDATE users SET disabled_at = now() WHERE id = (SELECT user_id FROM bot_tokens WHERE token_id = $1)"
    ),
}


@pytest.mark.parametrize("way", WAYS_TO_END)
async def test_the_sweep_finds_ended_sessions_and_no_others(scene: Scene, way: str) -> None:
    """Somebody else's session and token live on, and so does a token when its user's password changes."""
    bob = await enroll(scene.sql, "bob")
    kind = "token" if way.startswith("token") else "session"
    ending = await begin(scene.sql, bob, kind)
    others = [await begin(scene.sql, scene.ann, "session"), await begin(scene.sql, scene.ann, "token")]
    if way == "password changed":
        others.append(await begin(scene.sql, bob, "token"))
    scene.heard.sessions = [ending, *others]
    async with scene.listening(sweep_ms=20):
        await scene.sql.execute(WAYS_TO_END[way], ending.session_id)
        await until(lambda: scene.heard.ended)
        assert set(scene.heard.ended) == {ending.session_id}


async def test_of_many_sessions_the_sweep_looks_at_some_and_at_all_within_a_round(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orbital_relay.listener._SWEEP_SESSIONS", 2)
    sessions = [await begin(scene.sql, scene.ann, "session") for _ in range(5)]
    scene.heard.sessions = sessions
    async with scene.listening(sweep_ms=20):
        for session in (sessions[-1], sessions[0], sessions[2]):
            await scene.sql.execute(WAYS_TO_END["revoked"], session.session_id)
            await until(lambda session=session: session.session_id in scene.heard.ended)  # type: ignore[misc]


async def begin(sql: Connection, person: Person, kind: str) -> LiveSession:
    """A session or a token of this person's."""
    session = LiveSession(new_id(), person.user_id, 0)
    if kind == "session":
        await sql.execute(
            "INSERT INTO sessions"
            " (session_id, user_id, device_name, token_epoch, family_hash, refresh_hash, expires_at)"
            " VALUES ($1, $2, '', 0, '', '', now() + interval '1 day')",
            *(session.session_id, session.user_id),
        )
    else:
        await sql.execute(
            "INSERT INTO bot_tokens (token_id, user_id, name, secret_hash, scopes, group_ids)"
            " VALUES ($1, $2, '', '', '{}', '{}')",
            *(session.session_id, session.user_id),
        )
    return session
