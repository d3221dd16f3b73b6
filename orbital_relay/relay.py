"""The composition root: build, start, drain, stop. It alone knows how the parts are joined."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from ssl import SSLContext
from typing import Any, Final

import asyncpg

from orbital_protocol.codes import CloseCode
from orbital_relay import __version__, logs, token_keys
from orbital_relay.announcer import Announcer
from orbital_relay.assembly import Parts, Rates, assemble_handlers, assemble_services, gateway_settings
from orbital_relay.config import Settings, TokenKey
from orbital_relay.config import warnings as config_warnings
from orbital_relay.credentials import AccessTokens, Workers
from orbital_relay.embedded import EmbeddedPostgres
from orbital_relay.errors import StartupError
from orbital_relay.fanout import Fanout
from orbital_relay.gateway import Gateway
from orbital_relay.handlers.sessions import live_sessions
from orbital_relay.handlers.subscriptions import group_heads
from orbital_relay.heartbeat import Heartbeat, Pulse
from orbital_relay.janitor import Janitor
from orbital_relay.listener import Hears, Listener
from orbital_relay.media import choose
from orbital_relay.media.base import StoreError
from orbital_relay.media.guarded import GuardedStore
from orbital_relay.media.uploads import Flow, Uploads
from orbital_relay.metrics import Metrics
from orbital_relay.operators import Operators, Readiness
from orbital_relay.outbox import Flusher
from orbital_relay.reactions import Reactions
from orbital_relay.reclaimer import Reclaimer
from orbital_relay.registry import Registry
from orbital_relay.reloading import Reloader
from orbital_relay.replay import Replays
from orbital_relay.store import migrate
from orbital_relay.store.pool import Database, PoolSettings
from orbital_relay.tls import Certificate, Chain
from orbital_relay.writer import Lane, Writer

logger = logs.get()

_JANITOR_S: Final = 60


def now_us() -> int:
    """Microseconds since 1970 UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the relay listens."""

    port: int
    operators_port: int


@dataclass(frozen=True, slots=True)
class _Joined:
    """What is started and stopped of the joined parts; `background` is the work that goes on meanwhile, by its name."""

    gateway: Gateway
    operators: Operators
    parts: Parts
    background: dict[str, Coroutine[Any, Any, None]]


def _chain(settings: Settings) -> Chain | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Chain.read(settings.tls_cert, settings.tls_key)


class Relay:
    """One relay. `run` builds it, serves until `stop` is called, drains, and leaves nothing behind."""

    def __init__(self, settings: Settings, relay_id: bytes, read_settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._read_settings = read_settings
        self._relay_id = relay_id
        self._relay_hex = relay_id.hex()
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Event()
        self._keys: Sequence[TokenKey] = ()
        self._certificate: Certificate | None = None
        self._embedded: EmbeddedPostgres | None = None
        self._metrics = Metrics()
        self._registry = Registry()
        self._metrics.sessions.set_function(lambda: self._registry.authenticated_count)
        self._metrics.certificate_expires.set_function(
            lambda: 0 if self._certificate is None else self._certificate.chain.expires_at.timestamp()
        )
        self._metrics.outbox_bytes.set_function(lambda: sum(c.waiting_bytes() for c in self._registry))

    def stop(self) -> None:
        """Drain and end; `run` returns when that is done."""
        self._stopping.set()

    def reload(self) -> None:
        """Read the settings anew, soon, and take over what may change while the relay runs; the log tells what was."""
        self._reloading.set()

    async def run(self, on_listening: Callable[[Listening], None]) -> None:
        """Serve until `stop`. Raise StartupError, EmbeddedError or OSError where the relay can't start."""
        logger.info("relay.starting", version=__version__, pid=os.getpid())
        for sentence in config_warnings(self._settings):
            logger.warning("config.warning", message=sentence)
        async with AsyncExitStack() as stack:
            pool_settings = await self._prepare_database(stack)
            database = Database(pool_settings, self._relay_hex)
            stack.push_async_callback(database.close)
            await self._open(database)
            store = await self._open_store(stack, database)
            await self._serve(self._join(database, pool_settings, store), on_listening)

    # ── the database ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _prepare_database(self, stack: AsyncExitStack) -> PoolSettings:
        """Start the embedded database and bring its schema up, or check the operator's."""
        settings = self._settings
        dsn = settings.database_url
        if dsn is None:
            dsn = await self._start_embedded(stack)
            for migration in await migrate.upgrade(dsn):
                logger.info("migration.applied", migration=migration, direction="up")
        else:
            await migrate.require_current(dsn)
        return PoolSettings(
            dsn=dsn,
            min_size=settings.pool_min,
            max_size=settings.pool_max - settings.lanes,
            idle_s=settings.pool_idle_s,
            connect_timeout_s=settings.pool_connect_timeout_s,
            acquire_timeout_s=settings.acquire_timeout_s,
            statement_timeout_s=settings.statement_timeout_s,
        )

    async def _start_embedded(self, stack: AsyncExitStack) -> str:
        started = time.monotonic()
        embedded = EmbeddedPostgres(self._settings.postgres_dir)
        stack.push_async_callback(self._stop_embedded, embedded)
        dsn = await embedded.start()
        self._embedded = embedded
        logger.info(
            "database.embedded.started",
            path=str(self._settings.postgres_dir),
            duration_ms=round((time.monotonic() - started) * 1000),
        )
        return dsn

    async def _stop_embedded(self, embedded: EmbeddedPostgres) -> None:
        started = time.monotonic()
        await embedded.stop()
        if self._embedded is not None:
            logger.info("database.embedded.stopped", duration_ms=round((time.monotonic() - started) * 1000))

    async def _open(self, database: Database) -> None:
        """Open the pool, and agree with the other relays on the keys that sign tokens."""
        self._keys = token_keys.load(self._settings)
        try:
            await database.open()
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            raise StartupError(f"database_url: the database does not answer: {error}") from error
        async with database.transaction() as connection:
            await token_keys.register(connection, self._keys)

    async def _open_store(self, stack: AsyncExitStack, database: Database) -> GuardedStore:
        """Open the store of files, and agree with the other relays that it is this one."""
        settings = self._settings
        store = GuardedStore(
            choose.make_store(settings),
            self._metrics,
            timeout_s=settings.media_timeout_s,
            concurrency=settings.media_concurrency,
        )
        stack.push_async_callback(store.close)
        try:
            await store.open()
        except StoreError as error:
            raise StartupError(f"media_store: {error}") from error
        async with database.transaction() as connection:
            await choose.register(connection, store.identity)
        return store

    # ── serving ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, joined: _Joined, on_listening: Callable[[Listening], None]) -> None:
        """Start, wait until `stop`, drain, end."""
        async with asyncio.TaskGroup() as group:
            reloader = Reloader(self._settings, self._read_settings, partial(self._take_over, joined))
            background = {**joined.background, "reloader": reloader.run(self._reloading)}
            tasks = [group.create_task(work, name=name) for name, work in background.items()]
            try:
                operators_port = await joined.operators.start()
                port = await joined.gateway.start(
                    self._settings.listen_host, self._settings.listen_port, self._tls_context()
                )
                logger.info(
                    "relay.listening",
                    host=self._settings.listen_host,
                    port=port,
                    operators_host=self._settings.operators_host,
                    operators_port=operators_port,
                )
                on_listening(Listening(port, operators_port))
                await self._stopping.wait()
                await self._drain(joined.gateway, joined.parts.uploads)
            finally:
                await joined.operators.stop()
                await joined.parts.uploads.close()
                joined.parts.workers.close()
                for task in tasks:
                    task.cancel()

    async def _drain(self, gateway: Gateway, uploads: Uploads) -> None:
        started = time.monotonic()
        logger.info("relay.draining", count=len(self._registry))
        uploads.drain()
        await gateway.drain(self._settings.drain_timeout_ms / 1000)
        logger.info("relay.stopped", duration_ms=round((time.monotonic() - started) * 1000))

    async def _take_over(self, joined: _Joined, settings: Settings) -> set[str]:
        """Go on by other settings. Return the names of those whose files have changed. What can fail comes first."""
        keys = await asyncio.to_thread(token_keys.load, settings)
        chain = await asyncio.to_thread(_chain, settings)
        async with joined.parts.database.transaction() as connection:
            await token_keys.register(connection, keys)
        services = assemble_services(settings, assemble_handlers(settings, joined.parts), joined.parts)

        changed = {"token_keys"} if list(keys) != list(self._keys) else set()
        if self._certificate is not None and chain is not None:
            changed |= {"tls_cert"} if chain.pem != self._certificate.chain.pem else set()
            self._certificate.chain = chain
        self._settings, self._keys = settings, keys
        logs.configure(settings.log_level, settings.log_format, self._relay_id)
        joined.parts.tokens.use(keys)
        joined.parts.rates.tune(settings)
        joined.gateway.use(gateway_settings(settings), services)
        return changed

    async def _watch(self, embedded: EmbeddedPostgres) -> None:
        """Without its database the embedded relay has no business going on: whoever supervises it starts it again."""
        status = await embedded.wait()
        raise StartupError(f"the embedded PostgreSQL has ended (status {status})")

    # ── the parts ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _join(self, database: Database, pool_settings: PoolSettings, store: GuardedStore) -> _Joined:
        """Make every part, and join it to the others. Nothing has started yet."""
        settings = self._settings
        self._metrics.database_up.set_function(lambda: database.is_up)
        self._metrics.media_store_up.set_function(lambda: store.is_up)
        fanout = Fanout(database, self._metrics, settings.ring_bytes)
        writer = self._writer(pool_settings, fanout)
        fanout.on_progress = writer.nudge
        announcer = Announcer(database)
        workers = Workers(settings.bcrypt_threads, settings.bcrypt_queue)
        uploads = self._uploads(database, store)
        reclaimer = Reclaimer(
            database,
            store,
            fanout,
            self._metrics,
            relay_hex=self._relay_hex,
            upload_ttl_s=settings.upload_ttl_s,
        )
        sessions = live_sessions(database, now_us)
        heads = group_heads(database)
        replays = Replays(database, fanout, self._metrics, settings.replay_concurrency)
        parts = Parts(
            database=database,
            sessions=sessions,
            heads=heads,
            tokens=AccessTokens(self._keys),
            rates=Rates(settings),
            fanout=fanout,
            writer=writer,
            replays=replays,
            announcer=announcer,
            workers=workers,
            store=store,
            uploads=uploads,
            reclaimer=reclaimer,
            registry=self._registry,
            flusher=Flusher(asyncio.get_running_loop()),
            metrics=self._metrics,
            relay_id=self._relay_id,
            now=now_us,
        )
        handlers = assemble_handlers(settings, parts)
        reactions = Reactions(self._relay_hex, self._registry, fanout, handlers.invites.announcement)
        listener = self._listener(database, pool_settings, fanout, reactions)
        heartbeat = Heartbeat(
            Pulse(settings.heartbeat_ms, settings.no_pong_ms, settings.slow_consumer_ms), now_us, self._metrics
        )
        services = assemble_services(settings, handlers, parts)
        gateway = Gateway(gateway_settings(settings), services, heartbeat, writer.flushed)
        operators = Operators(
            settings.operators_host,
            settings.operators_port,
            self._metrics,
            lambda: self._readiness(database, listener, store),
        )
        background: dict[str, Coroutine[Any, Any, None]] = {
            "fanout": fanout.run(),
            "writer": writer.run(),
            "listener": listener.run(),
            "announcer": announcer.run(),
            "sessions": sessions.run(),
            "heads": heads.run(),
            "replays": replays.reads.run(),
            "reactions": reactions.run(),
            "heartbeat": heartbeat.run(),
            "janitor": Janitor(database).run(_JANITOR_S),
            "reclaimer": reclaimer.run(settings.media_sweep_ms / 1000),
        }
        if self._embedded is not None:
            background["embedded database"] = self._watch(self._embedded)
        return _Joined(gateway, operators, parts, background)

    def _tls_context(self) -> SSLContext | None:
        chain = _chain(self._settings)
        if chain is None:
            return None
        self._certificate = Certificate(chain)
        return self._certificate.context

    def _writer(self, pool_settings: PoolSettings, fanout: Fanout) -> Writer:
        settings = self._settings
        return Writer(
            [
                Lane(
                    number,
                    pool_settings,
                    fanout=fanout,
                    metrics=self._metrics,
                    relay_hex=self._relay_hex,
                    max_batch=settings.max_batch,
                    max_queue=settings.lane_queue,
                    max_queue_bytes=settings.lane_queue_bytes,
                )
                for number in range(settings.lanes)
            ]
        )

    def _listener(
        self, database: Database, pool_settings: PoolSettings, fanout: Fanout, reactions: Reactions
    ) -> Listener:
        settings = self._settings
        return Listener(
            database=database,
            settings=replace(pool_settings, dsn=settings.listener_database_url or pool_settings.dsn),
            relay_hex=self._relay_hex,
            hears=Hears(
                wake=fanout.wake,
                bury=fanout.bury,
                hint=reactions.react,
                groups=fanout.groups,
                sessions=self._registry.sessions,
                end_sessions=lambda ids: self._registry.end_sessions(ids, CloseCode.REVOKED),
            ),
            metrics=self._metrics,
            echo_ms=settings.echo_ms,
            sweep_ms=settings.sweep_ms,
        )

    def _uploads(self, database: Database, store: GuardedStore) -> Uploads:
        settings = self._settings
        flow = Flow(settings.media_chunk_bytes, settings.media_window, settings.media_memory_bytes)
        return Uploads(database, store, self._metrics, flow)

    def _readiness(self, database: Database, listener: Listener, store: GuardedStore) -> Readiness:
        return Readiness(
            database=database.is_up, listener=listener.is_up, store=store.is_up, draining=self._stopping.is_set()
        )
