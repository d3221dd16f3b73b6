"""The command line: `orbital-relay serve | migrate | check | …`. Exit codes: 0 done, 1 a problem, 2 wrong usage."""

import sys
from typing import Annotated, NoReturn

import typer

from orbital_relay import __version__
from orbital_relay.commands import groups, log, migrations, sessions, users
from orbital_relay.commands.check import check
from orbital_relay.commands.serve import serve
from orbital_relay.commands.settings import show_config
from orbital_relay.commands.tail import tail
from orbital_relay.config import ConfigError
from orbital_relay.embedded import EmbeddedError
from orbital_relay.errors import OrbitalError

app = typer.Typer(name="orbital-relay", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(serve)
app.add_typer(migrations.app, name="migrate")
app.command()(check)
app.command("config")(show_config)
app.add_typer(users.app, name="user")
app.add_typer(groups.app, name="group")
app.add_typer(sessions.app, name="session")
app.add_typer(log.app, name="log")
app.command()(tail)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"orbital-relay {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Orbital's relay, and what its operator needs."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except (OrbitalError, EmbeddedError) as error:
        _fail(str(error), 1)
    except ConfigError as error:
        _fail(str(error), 2)


def _fail(text: str, status: int) -> NoReturn:
    for line in text.splitlines():
        print(f"orbital-relay: {line}", file=sys.stderr)
    sys.exit(status)
