"""Puts the handlers together from settings and shared parts: the relay's half of the composition root."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from orbital_protocol.frames import Limits
from orbital_relay.announcer import Announcer
from orbital_relay.caller import Clock
from orbital_relay.config import Settings, TokenKey
from orbital_relay.control import Control
from orbital_relay.credentials import AccessTokens, Mint, Passwords, Workers
from orbital_relay.dispatch import Handlers
from orbital_relay.fanout import Fanout
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
from orbital_relay.reclaimer import Reclaimer
from orbital_relay.store.pool import Database


@dataclass(frozen=True, slots=True)
class Parts:
    """What handlers share."""

    database: Database
    sessions: LiveSessions
    heads: GroupHeads
    keys: Sequence[TokenKey]
    fanout: Fanout
    announcer: Announcer
    workers: Workers
    store: Store
    uploads: Uploads
    reclaimer: Reclaimer
    metrics: Metrics
    relay_hex: str
    now: Clock


def assemble_handlers(settings: Settings, limits: Limits, parts: Parts) -> Handlers:
    """Build every handler."""
    control = Control(parts.database, parts.fanout, parts.relay_hex)
    sign_in = _sign_in(settings, limits, parts)
    return Handlers(
        accounts=_accounts(settings, sign_in, parts),
        sessions=Sessions(sign_in, live=parts.sessions, hint=parts.announcer.announce),
        tokens=Tokens(parts.database, limits, parts.now, parts.relay_hex),
        groups=Groups(control, parts.database, limits, _hourly(limits.rekeys_per_hour)),
        members=Members(control, parts.database, limits),
        invites=Invites(
            control=control,
            database=parts.database,
            limits=limits,
            relay_hex=parts.relay_hex,
            clock=parts.now,
            guesses=KeyedBuckets(
                settings.invite_attempts_per_minute / 60, settings.invite_attempts_per_minute, time.monotonic
            ),
            knocks=_hourly(limits.knocks_per_hour),
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
            signal_rate=KeyedBuckets(limits.signals_per_second, 2 * limits.signals_per_second, time.monotonic),
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
            AccessTokens(parts.keys),
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
    by_address = settings.registrations_per_hour_per_address
    return Accounts(
        sign_in,
        Registration(settings.registration, settings.registration_code, _hourly(by_address) if by_address else None),
        KeyReplacement(parts.database, parts.workers, parts.fanout, parts.relay_hex),
        publisher=parts.fanout,
        hint=parts.announcer.announce,
    )


def _hourly(count: int) -> KeyedBuckets:
    return KeyedBuckets(count / 3600, count, time.monotonic)
