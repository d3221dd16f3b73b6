"""The commands, the options of all of them, and what goes wrong, in a line each."""

import importlib
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from orbital_client.cli import accounts, bots, exporting, groups, members, talking, transfers, verifying
from orbital_client.cli.options import CommandError, Options, default_store, given
from orbital_client.cli.terminal import Terminal, printable
from orbital_client.errors import ConnectionLost, OrbitalError, RequestFailed
from orbital_protocol.codes import ErrorCode

_FLAGS: Final = frozenset({"--json"})
_VALUES: Final = frozenset({"--store"})
_WORDS: Final[dict[str, str]] = {
    ErrorCode.CREDENTIALS_INVALID: "no user of that name has this passphrase",
    ErrorCode.USERNAME_TAKEN: "that username is taken: choose another one",
    ErrorCode.REGISTRATION_CLOSED: "this relay takes new users only with a registration code: --registration-code",
}


class _Commands(TyperGroup):
    """Prints what can't be done in a line each, where Python would show a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _globals_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (OrbitalError, OSError) as error:
            for line in explain(error).splitlines():
                typer.echo(f"orbital: {printable(line)}", err=True)
            raise typer.Exit(1) from None


def _globals_first(args: list[str]) -> list[str]:
    """Options of all commands may stand anywhere before `--`."""
    first: list[str] = []
    rest: list[str] = []
    left = iter(args)
    for arg in left:
        if arg == "--":
            rest += [arg, *left]
        elif arg in _FLAGS or arg.startswith(tuple(f"{name}=" for name in _VALUES)):
            first.append(arg)
        elif arg in _VALUES:
            first += [arg, *([value] if (value := next(left, None)) is not None else [])]
        else:
            rest.append(arg)
    return first + rest


def explain(error: OrbitalError | OSError) -> str:
    """What went wrong, for people."""
    match error:
        case RequestFailed():
            return _WORDS.get(error.code) or str(error).removeprefix(f"{error.code}: ")
        case ConnectionLost() if "Connect call failed" in str(error.__cause__):
            return f"{str(error).partition(': ')[0]}: no relay is listening there"
        case OSError() if error.strerror and error.filename:
            return f"{error.filename}: {error.strerror}"
        case _:
            return str(error) or type(error).__name__


app = typer.Typer(
    name="orbital", cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
for topic in (accounts, groups, members, talking, transfers, verifying, exporting):
    for name, function in topic.COMMANDS.items():
        app.command(name)(function)

bot = typer.Typer(name="bot", no_args_is_help=True, help="Bots: members that are programs, and what they run with.")
for name, function in bots.COMMANDS.items():
    bot.command(name)(function)
app.add_typer(bot)


@app.command()
def chat(ctx: typer.Context) -> None:
    """Talk in a full-screen window."""
    options = given(ctx)
    try:
        package = importlib.import_module("orbital_client.chat")
    except ModuleNotFoundError as error:
        missing = "chat" if (error.name or "").startswith("orbital") else error.name
        raise CommandError(f"{missing} is not installed: pip install 'orbital-client[cli]'") from None
    store, _ = options.opened()
    store.close()
    package.run(options.store)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"orbital {version('orbital-client')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    *,
    store: Annotated[
        Path | None,
        typer.Option(envvar="ORBITAL_STORE", help="File with keys and what was verified.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Groups that nobody else can read: talk, share files, and verify what the relay shows."""
    logging.getLogger("orbital_client").addHandler(logging.NullHandler())
    ctx.obj = Options(store or default_store(), Terminal(as_json=as_json))
