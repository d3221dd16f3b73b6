"""The command line: `orbital-relay serve | migrate | config | …`. Exit codes: 0 done, 1 a problem, 2 wrong usage."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from orbital_relay import __version__, config, logs
from orbital_relay.config import ConfigError, Settings
from orbital_relay.embedded import EmbeddedError
from orbital_relay.errors import StartupError
from orbital_relay.relay import Listening, Relay
from orbital_relay.store import migrate

app = typer.Typer(name="orbital-relay", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
migrations = typer.Typer(no_args_is_help=True, help="Bring the operator's database to this relay's schema.")
app.add_typer(migrations, name="migrate")
out = Console()

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting (see `orbital-relay config`).")
]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except (StartupError, EmbeddedError) as error:
        _fail(str(error), 1)
    except ConfigError as error:
        _fail(str(error), 2)


def _fail(text: str, status: int) -> NoReturn:
    for line in text.splitlines():
        print(f"orbital-relay: {line}", file=sys.stderr)
    sys.exit(status)


def settings_from(file: Path | None, sets: list[str] | None, **flags: Any) -> Settings:
    """Load the settings; `--set` stands beside the flags."""
    given: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    for text in sets or []:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError([f"--set {text}: must be KEY=VALUE"])
        given[key.strip().replace("-", "_")] = value
    return config.load(given, file=file)


@app.command()
def serve(  # noqa: PLR0913  one parameter a flag
    file: ConfigOption = None,
    sets: SetOption = None,
    listen_host: Annotated[str | None, typer.Option(help="Address that clients connect to.")] = None,
    listen_port: Annotated[int | None, typer.Option(help="Port that clients connect to; 0 picks one.")] = None,
    operators_port: Annotated[int | None, typer.Option(help="Port of metrics and health; 0 picks one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the embedded database lives.")] = None,
    database_url: Annotated[str | None, typer.Option(help="PostgreSQL of the operator's.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, console or json.")] = None,
) -> None:
    """Run the relay until SIGTERM or SIGINT, then drain."""
    settings = settings_from(
        file,
        sets,
        listen_host=listen_host,
        listen_port=listen_port,
        operators_port=operators_port,
        data_dir=data_dir,
        database_url=database_url,
        log_level=log_level,
        log_format=log_format,
    )
    relay_id = os.urandom(16)
    logs.configure(settings.log_level, settings.log_format, relay_id)
    try:
        uvloop.run(_serve(settings, relay_id))
    except BaseExceptionGroup as group:
        problems = group.subgroup((StartupError, OSError))
        if problems is None:
            raise
        _fail("; ".join(str(error) for error in _leaves(problems)), 1)
    except OSError as error:
        _fail(str(error), 1)


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def _serve(settings: Settings, relay_id: bytes) -> None:
    relay = Relay(settings, relay_id)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, relay.stop)
    await relay.run(lambda listening: _welcome(settings, listening))


def _welcome(settings: Settings, listening: Listening) -> None:
    """Tell people at a terminal what listens where, and what to type next."""
    if not sys.stdout.isatty():
        return
    scheme = "ws" if settings.tls_cert is None else "wss"
    store = "PostgreSQL of yours" if settings.database_url else f"embedded PostgreSQL in {settings.data_dir}"
    out.print(f"\n[bold]Orbital relay {__version__}[/bold]   {store}")
    out.print(f"  clients    [cyan]{scheme}://{settings.listen_host}:{listening.port}[/cyan]")
    out.print(f"  operators  [cyan]http://{settings.operators_host}:{listening.operators_port}/metrics[/cyan]")
    out.print("  next       [green]make demo[/green] in another terminal; Ctrl-C drains and stops\n")


@app.command("config")
def show_config(file: ConfigOption = None, sets: SetOption = None) -> None:
    """Show what is in force, and where each value came from; secrets are masked."""
    table = Table("setting", "value", "from", box=None, header_style="bold")
    for row in config.describe(settings_from(file, sets)):
        table.add_row(row.key, row.shown, row.source)
    out.print(table)


def _dsn(file: Path | None, sets: list[str] | None) -> str:
    settings = settings_from(file, sets)
    if settings.database_url is None:
        raise StartupError("the embedded database migrates by itself; give database_url for one of yours")
    return settings.database_url


@migrations.command("up")
def migrate_up(file: ConfigOption = None, sets: SetOption = None) -> None:
    """Apply what is pending."""
    applied = asyncio.run(migrate.upgrade(_dsn(file, sets)))
    out.print("\n".join(f"applied {name}" for name in applied) or "nothing to do")


@migrations.command("down")
def migrate_down(
    count: Annotated[int, typer.Argument(min=1, help="How many to take back.")] = 1,
    file: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Take the newest migrations back; their tables' rows are lost."""
    undone = asyncio.run(migrate.downgrade(_dsn(file, sets), count))
    out.print("\n".join(f"took back {name}" for name in undone) or "nothing to do")


@migrations.command("status")
def migrate_status(file: ConfigOption = None, sets: SetOption = None) -> None:
    """Show what is applied, pending and wrong; exit 1 unless the relay could run."""
    found = asyncio.run(migrate.status(_dsn(file, sets)))
    for name in found.applied:
        out.print(f"applied  {name}")
    for name in found.pending:
        out.print(f"pending  {name}")
    for problem in found.problems:
        out.print(f"problem  {problem}")
    if found.pending or found.problems:
        raise typer.Exit(1)
