"""`orbital-relay serve`: run the relay until it is told to stop."""

import asyncio
import ctypes
import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvloop

from orbital_relay import __version__, logs, supervisor
from orbital_relay.commands.options import ConfigOption, SetOption, settings_from
from orbital_relay.config import Settings
from orbital_relay.errors import StartupError
from orbital_relay.relay import Listening, Relay

_STDIN: Final = 0
_COLLECT_AFTER_OBJECTS: Final = 50_000
_M_MMAP_THRESHOLD: Final = -3  # malloc.h
_M_TRIM_THRESHOLD: Final = -1
_MAPPED_BYTES: Final = 32 * 1024 * 1024  # the largest that it takes
_KEPT_BYTES: Final = 16 * 1024 * 1024


def serve(  # noqa: PLR0913  one parameter a flag
    *,
    file: ConfigOption = None,
    sets: SetOption = None,
    listen_host: Annotated[str | None, typer.Option(help="Address that clients connect to.")] = None,
    listen_port: Annotated[int | None, typer.Option(help="Port that clients connect to; 0 picks one.")] = None,
    operators_port: Annotated[int | None, typer.Option(help="Port of metrics and health; 0 picks one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the embedded database lives.")] = None,
    database_url: Annotated[str | None, typer.Option(help="PostgreSQL of the operator's.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file with the certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, console or json.")] = None,
) -> None:
    """Run the relay until SIGTERM or SIGINT, then drain. SIGHUP: read the settings again."""
    read = partial(
        settings_from,
        file,
        sets,
        listen_host=listen_host,
        listen_port=listen_port,
        operators_port=operators_port,
        data_dir=data_dir,
        database_url=database_url,
        tls_cert=tls_cert,
        tls_key=tls_key,
        log_level=log_level,
        log_format=log_format,
    )
    settings = read()
    relay_id = os.urandom(16)
    faulthandler.enable()  # of a crash in C, or SIGABRT: where each thread is, and no values
    logs.configure(settings.log_level, settings.log_format, relay_id)
    try:
        with logs.written_behind():
            uvloop.run(_serve(settings, relay_id, read))
    except BaseExceptionGroup as group:
        problems = group.subgroup((StartupError, OSError))
        if problems is None:
            raise
        raise StartupError("; ".join(str(error) for error in _leaves(problems))) from None
    except OSError as error:
        raise StartupError(str(error)) from None


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def _serve(settings: Settings, relay_id: bytes, read: Callable[[], Settings]) -> None:
    relay = Relay(settings, relay_id, read)
    _obey_signals(relay)
    _collect_seldom()
    _keep_freed_memory()

    def ready(listening: Listening) -> None:
        supervisor.tell("READY=1")
        _welcome(settings, listening)

    await relay.run(ready)


def _obey_signals(relay: Relay) -> None:
    loop = asyncio.get_running_loop()
    has_terminal = os.isatty(_STDIN)

    def stop() -> None:
        supervisor.tell("STOPPING=1")
        relay.stop()

    def hang_up() -> None:
        """Somebody wants the settings read again; or the terminal is gone, and with it whoever would stop the relay."""
        if has_terminal and not os.isatty(_STDIN):
            stop()
        else:
            relay.reload()

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)


def _collect_seldom() -> None:
    """Let the cycle collector run seldom, and never look at what has been imported.

    Nearly everything here is freed by its reference count. At Python's own threshold of 700 objects, a thousand posts
    under way make the collector walk over the same objects again and again: a quarter of the processor.
    """
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS)


def _keep_freed_memory() -> None:
    """Let the C library keep some of what was freed, instead of giving it back to the kernel at once.

    Chunks of files come and go. Without this, each is laid in pages that the kernel has to clear first, which costs as
    much as all that is done with it. Only glibc has such a call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _welcome(settings: Settings, listening: Listening) -> None:
    """Tell people at a terminal what listens where, and what to type next."""
    if not sys.stdout.isatty():
        return
    scheme = "ws" if settings.tls_cert is None else "wss"
    store = "PostgreSQL of yours" if settings.database_url else f"embedded PostgreSQL in {settings.data_dir}"
    host = f"[{settings.listen_host}]" if ":" in settings.listen_host else settings.listen_host
    typer.echo(f"\n{typer.style(f'Orbital relay {__version__}', bold=True)}   {store}")
    for label, what, color in (
        ("clients", f"{scheme}://{host}:{listening.port}", "cyan"),
        ("operators", f"http://{settings.operators_host}:{listening.operators_port}/metrics", "cyan"),
        ("next", "make demo", "green"),
    ):
        after = " in another terminal, or the client in README.md; Ctrl-C drains and stops\n" if label == "next" else ""
        typer.echo(f"  {label:<10} {typer.style(what, fg=color)}{after}")
