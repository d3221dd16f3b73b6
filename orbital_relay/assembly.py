"""What is made of settings: the handlers, what sessions share, whom the gateway lets in. Each may be made anew, of the
same parts, while the relay runs.
"""

import time
from dataclasses import dataclass

from orbital_protocol import PROTOCOL_VERSION, codec
from orbital_protocol.frames import Hello, Limits
from orbital_protocol.statements import MAX_STATEMENT_BYTES
from orbital_relay import __version__
from orbital_relay.announcer import Announcer
from orbital_relay.caller import Clock
from orbital_relay.config import Settings
from orbital_relay.control import Control
from orbital_relay.credentials import AccessTokens, Mint, Passwords, Workers
from orbital_relay.dispatch import Handlers, routes
from orbital_relay.fanout import Fanout
from orbital_relay.gateway import GatewaySettings
from orbital_relay.handlers.accounts import Accounts, Registration
from orbital_relay.handlers.groups import Groups
from orbital_relay.handlers.invites import Invites
from orbital_relay.handlers.key_replacement import KeyReplacement
from orbital_relay.handlers.media import Media
from orbital_relay.handlers.members import Members
from orbital_relay.handlers.posts import Posts
from orbital_relay.handlers.sessions import LiveSessions, Sessions
from orbital_relay.handlers.sign_in import SignIn
from orbital_relay.handlers.subscriptions import GroupHeads, Live
from orbital_relay.handlers.tokens import Tokens
from orbital_relay.handlers.uploads import MediaUploads
from orbital_relay.limits import KeyedBuckets, LoginBackoff
from orbital_relay.media.base import Store
from orbital_relay.media.uploads import Uploads
from orbital_relay.metrics import Metrics
from orbital_relay.outbox import Flusher
from orbital_relay.reclaimer import Reclaimer
from orbital_relay.registry import Registry
from orbital_relay.replay import Replays
from orbital_relay.session import Services
from orbital_relay.store.pool import Database
from orbital_relay.writer import Writer


class Rates:
    """How often somebody may do what: the buckets, which outlive a change of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.signals, self.guesses, self.rekeys, self.knocks, self.registrations = (
            KeyedBuckets(1, 1, time.monotonic) for _ in range(5)
        )
        self.tune(settings)

    def tune(self, settings: Settings) -> None:
        """Go on at the settings' rates."""
        self.signals.tune(settings.signals_per_second, 2 * settings.signals_per_second)
        self.guesses.tune(settings.invite_attempts_per_minute / 60, settings.invite_attempts_per_minute)
        self.rekeys.tune(settings.rekeys_per_hour / 3600, settings.rekeys_per_hour)
        self.knocks.tune(settings.knocks_per_hour / 3600, settings.knocks_per_hour)
        if hourly := settings.registrations_per_hour_per_address:  # 0: nobody asks
            self.registrations.tune(hourly / 3600, hourly)


@dataclass(frozen=True, slots=True)
class Parts:
    """What handlers share, and what outlives them when they are built anew."""

    database: Database
    sessions: LiveSessions
    heads: GroupHeads
    tokens: AccessTokens
    rates: Rates
    fanout: Fanout
    writer: Writer
    replays: Replays
    announcer: Announcer
    workers: Workers
    store: Store
    uploads: Uploads
    reclaimer: Reclaimer
    registry: Registry
    flusher: Flusher
    metrics: Metrics
    relay_id: bytes
    now: Clock

    @property
    def relay_hex(self) -> str:
        """How other relays know this one."""
        return self.relay_id.hex()


def _limits(settings: Settings) -> Limits:
    """What `hello` says, and what is enforced."""
    return Limits(max_depth=codec.MAX_DEPTH, max_statement_bytes=MAX_STATEMENT_BYTES, **settings.limits.model_dump())


def assemble_services(settings: Settings, handlers: Handlers, parts: Parts) -> Services:
    """Build what sessions share."""
    limits = _limits(settings)
    hello = Hello(
        protocol=PROTOCOL_VERSION,
        server=f"orbital-relay/{__version__}",
        relay_id=parts.relay_id,
        limits=limits,
        auth_timeout_ms=settings.auth_timeout_ms,
        heartbeat_ms=settings.heartbeat_ms,
        registration=settings.registration,
    )
    return Services(
        hello=codec.encode(hello),
        routes=routes(handlers),
        writer=parts.writer,
        replays=parts.replays,
        registry=parts.registry,
        metrics=parts.metrics,
        limits=limits,
        flusher=parts.flusher,
        now=parts.now,
        auth_timeout_ms=settings.auth_timeout_ms,
        outbox_bytes=settings.outbox_bytes,
    )


def gateway_settings(settings: Settings) -> GatewaySettings:
    """Whom the gateway lets in."""
    return GatewaySettings(
        origins=settings.origins,
        allow_no_origin=settings.allow_no_origin,
        trusted_proxies=settings.trusted_proxies,
        connections_max=settings.connections_max,
        connections_per_address=settings.connections_per_address,
        unauthenticated_max=settings.unauthenticated_max,
        max_unauthenticated_frame_bytes=settings.max_unauthenticated_frame_bytes,
    )


def assemble_handlers(settings: Settings, parts: Parts) -> Handlers:
    """Build every handler."""
    limits = _limits(settings)
    control = Control(parts.database, parts.fanout, parts.relay_hex)
    sign_in = _sign_in(settings, limits, parts)
    return Handlers(
        accounts=_accounts(settings, sign_in, parts),
        sessions=Sessions(sign_in, live=parts.sessions, hint=parts.announcer.announce),
        tokens=Tokens(parts.database, limits, parts.now, parts.relay_hex),
        groups=Groups(control, parts.database, limits, parts.rates.rekeys),
        members=Members(control, parts.database, limits),
        invites=Invites(
            control=control,
            database=parts.database,
            limits=limits,
            relay_hex=parts.relay_hex,
            clock=parts.now,
            guesses=parts.rates.guesses,
            knocks=parts.rates.knocks,
        ),
        posts=Posts(parts.database, limits),
        uploads=_uploads(limits, parts),
        media=_media(settings, limits, control, parts),
        live=Live(
            database=parts.database,
            heads=parts.heads,
            limits=limits,
            now=parts.now,
            relay_hex=parts.relay_hex,
            signal_rate=parts.rates.signals,
            deliver_signal=parts.fanout.signal,
            hint=parts.announcer.announce,
        ),
    )


def _uploads(limits: Limits, parts: Parts) -> MediaUploads:
    return MediaUploads(
        database=parts.database,
        store=parts.store,
        uploads=parts.uploads,
        publisher=parts.fanout,
        metrics=parts.metrics,
        limits=limits,
        relay_hex=parts.relay_hex,
        reclaim=parts.reclaimer.nudge,
    )


def _media(settings: Settings, limits: Limits, control: Control, parts: Parts) -> Media:
    return Media(
        control=control,
        database=parts.database,
        store=parts.store,
        metrics=parts.metrics,
        limits=limits,
        now=parts.now,
        url_ttl_s=settings.s3_url_ttl_s,
        reclaim=parts.reclaimer.nudge,
    )


def _sign_in(settings: Settings, limits: Limits, parts: Parts) -> SignIn:
    return SignIn(
        database=parts.database,
        passwords=Passwords(parts.workers),
        mint=Mint(
            parts.tokens,
            access_ttl_s=settings.access_token_ttl_s,
            refresh_ttl_s=settings.refresh_token_ttl_s,
        ),
        backoff=LoginBackoff(
            free=settings.login_attempts_free,
            base_s=settings.login_backoff_base_s,
            max_s=settings.login_backoff_max_s,
            clock=parts.now,
        ),
        limits=limits,
        now=parts.now,
        relay_hex=parts.relay_hex,
    )


def _accounts(settings: Settings, sign_in: SignIn, parts: Parts) -> Accounts:
    by_address = parts.rates.registrations if settings.registrations_per_hour_per_address else None
    return Accounts(
        sign_in,
        Registration(settings.registration, settings.registration_code, by_address),
        KeyReplacement(parts.database, parts.workers, parts.fanout, parts.relay_hex),
        publisher=parts.fanout,
        hint=parts.announcer.announce,
    )
