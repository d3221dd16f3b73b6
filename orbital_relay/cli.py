"""The command line: `orbital-relay serve | migrate | check | …`. Exit codes: 0 done, 1 a problem, 2 wrong usage."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orbital_relay import __version__
from orbital_relay.commands import groups, log, media, migrations, sessions, users
from orbital_relay.commands.backup import backup, restore
from orbital_relay.commands.check import check
from orbital_relay.commands.serve import serve
from orbital_relay.commands.settings import show_config
from orbital_relay.commands.tail import tail
from orbital_relay.config import ConfigError
from orbital_relay.embedded import EmbeddedError
from orbital_relay.errors import OrbitalError


class _Commands(TyperGroup):
    """Prints what can't be done in a line each, where Python would show a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (OrbitalError, EmbeddedError) as error:
            _complain(error)
            raise typer.Exit(1) from None
        except ConfigError as error:
            _complain(error)
            raise typer.Exit(2) from None


def _complain(error: Exception) -> None:
    for line in str(error).splitlines():
        typer.echo(f"orbital-relay: {line}", err=True)


app = typer.Typer(
    name="orbital-relay", cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.command()(serve)
app.add_typer(migrations.app, name="migrate")
app.command()(check)
app.command("config")(show_config)
app.add_typer(users.app, name="user")
app.add_typer(groups.app, name="group")
app.add_typer(sessions.app, name="session")
app.add_typer(log.app, name="log")
app.add_typer(media.app, name="media")
app.command()(backup)
app.command()(restore)
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
    app()
