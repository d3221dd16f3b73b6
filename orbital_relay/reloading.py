"""Settings that are changed while the relay runs: it reads them anew when it is told to, and takes over what it can.

What belongs to a connection, such as the limits that `hello` told it, stays as it was for as long as that lasts
(docs/adr/0027-a-connection-keeps-its-limits.md). What can't be used is refused whole, and nothing changes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from orbital_relay import config, logs
from orbital_relay.config import ConfigError, Limits, Settings
from orbital_relay.errors import RequestError, StartupError

logger = logs.get()

LIVE: Final = (frozenset(Limits.model_fields) - {"media_chunk_bytes", "media_window"}) | {
    "access_token_ttl_s",
    "allow_no_origin",
    "auth_timeout_ms",
    "connections_max",
    "connections_per_address",
    "drain_timeout_ms",
    "invite_attempts_per_minute",
    "log_level",
    "login_attempts_free",
    "login_backoff_base_s",
    "login_backoff_max_s",
    "origins",
    "outbox_bytes",
    "refresh_token_ttl_s",
    "registration",
    "registration_code",
    "registrations_per_hour_per_address",
    "s3_url_ttl_s",
    "tls_cert",
    "tls_key",
    "token_keys",
    "trusted_proxies",
    "unauthenticated_max",
}
"""The settings that a running relay takes over; all others take a restart."""

_TLS: Final = frozenset({"tls_cert", "tls_key"})


class Reloader:
    """Carries out reloads, one after the other. `read` gives the settings as they are written now, or raises
    ConfigError; `apply` takes settings over, or raises StartupError or RequestError and leaves all as it was. It
    returns the names of further settings that have changed, in files that they name.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        apply: Callable[[Settings], Awaitable[Collection[str]]],
    ) -> None:
        self._settings = settings
        self._read = read
        self._apply = apply

    async def run(self, asked: asyncio.Event) -> None:
        """Reload whenever it was asked for, until cancelled."""
        while True:
            await asked.wait()
            asked.clear()
            await self._reload()

    async def _reload(self) -> None:
        try:
            given = await asyncio.to_thread(self._read)
            differing = {key for key in Settings.model_fields if getattr(given, key) != getattr(self._settings, key)}
            live = differing & _live(self._settings, given)
            settings = config.adopt(self._settings, given, live)
            changed = live | {*await self._apply(settings)}
        except ConfigError as error:
            for problem in error.problems:
                logger.error("config.refused", message=problem)
        except (StartupError, RequestError) as error:
            logger.error("config.refused", message=str(error))
        except Exception as error:  # whoever asked must not have ended a relay that runs
            logger.error("config.refused", message="a defect", exc_info=error)
        else:
            self._settings = settings
            for sentence in config.warnings(settings):
                logger.warning("config.warning", message=sentence)
            logger.info("config.reloaded", changed=sorted(changed), pending=sorted(differing - live))


def _live(running: Settings, given: Settings) -> frozenset[str]:
    """What can be taken over: a port that speaks TLS goes on to speak TLS, and one that doesn't, doesn't."""
    speaks_as_before = (running.tls_cert is None) == (given.tls_cert is None)
    return LIVE if speaks_as_before else LIVE - _TLS
