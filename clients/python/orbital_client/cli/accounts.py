"""Accounts: register, log in and out, who one is, another passphrase."""

import asyncio
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from orbital_client import Client, Store
from orbital_client.account import identity_of
from orbital_client.cli import passphrases
from orbital_client.cli.options import CommandError, Options, command, given
from orbital_client.cli.terminal import printable
from orbital_client.crypto.fingerprints import fingerprint


def _parse_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise typer.BadParameter(f"{text} is no relay's address, such as wss://relay.example.org")
    return text


UrlArgument = Annotated[str, typer.Argument(parser=_parse_url, metavar="URL", help="The relay: wss://…")]
NameArgument = Annotated[str, typer.Argument(metavar="USERNAME", help="3 to 50 of a-z, 0-9 and _.")]


@command
async def register(
    ctx: typer.Context,
    url: UrlArgument,
    username: NameArgument,
    *,
    passphrase_file: passphrases.FileOption = None,
    registration_code: Annotated[str | None, typer.Option(help="From the relay's operator, where it asks for one.")] = (
        None
    ),
) -> None:
    """Make an account. Without a passphrase, six random words are proposed, and shown this once."""
    options = given(ctx)
    with _own_store(options, url, username, is_new=True) as store:
        passphrase, is_proposed = await asyncio.to_thread(
            passphrases.chosen, await asyncio.to_thread(passphrases.given, passphrase_file)
        )
        if is_proposed:
            options.terminal.say("Your passphrase, shown this once. Write it down: nobody can recover it.")
            options.terminal.say(f"\n    {passphrase}\n", "bold")
        async with Client(url, store=store) as client:
            await client.register(username, passphrase, registration_code=registration_code, device=platform.node())
            _welcome(options, client, passphrase=passphrase if is_proposed else None)


@command
async def login(
    ctx: typer.Context, url: UrlArgument, username: NameArgument, *, passphrase_file: passphrases.FileOption = None
) -> None:
    """Log in, here or on a new device: the keys come from the backup that the passphrase opens."""
    options = given(ctx)
    with _own_store(options, url, username, is_new=False) as store:
        passphrase = await asyncio.to_thread(passphrases.known, passphrase_file)
        async with Client(url, store=store) as client:
            await client.login(username, passphrase, device=platform.node())
            _welcome(options, client)


def _own_store(options: Options, url: str, username: str, *, is_new: bool) -> Store:
    """A store for this account: an empty one, or its own. Keys of others in it must not be lost or mixed up."""
    store = Store(options.store)
    account = store.account()
    if account is not None and (is_new or (account.url, account.username) != (url, username)):
        store.close()
        owner = f"{account.username} at {account.url}"
        raise CommandError(f"{options.store} has the keys of {owner}: use another file, with --store")
    return store


def _welcome(options: Options, client: Client, **more: Any) -> None:
    options.terminal.say(f"You are {printable(client.username)}. Your fingerprint, for others to compare:")
    options.terminal.say(f"\n    {client.fingerprint}\n", "bold")
    options.terminal.document(
        {"username": client.username, "user_id": client.user_id, "fingerprint": client.fingerprint}
        | {name: value for name, value in more.items() if value is not None}
    )


@command
async def logout(ctx: typer.Context) -> None:
    """End this login. The keys stay here; what was verified, too."""
    options = given(ctx)
    async with options.connected() as client:
        await client.logout()
    options.terminal.done("logged out", ok=True)


@command
async def whoami(ctx: typer.Context) -> None:
    """Show who one is here, and one's fingerprint. Asks no relay."""
    options = given(ctx)
    store, account = options.opened()
    with store:
        identity = identity_of(account)
        is_in = store.tokens() is not None
    facts = {
        "username": account.username,
        "user_id": account.user_id,
        "url": account.url,
        "store": str(options.store),
        "is_logged_in": is_in,
        "fingerprint": fingerprint(identity.user_id, identity.rsa_thumbprint, identity.signing_key),
    }
    options.terminal.document(facts)
    labels = {"user": "username", "id": "user_id", "relay": "url", "store": "store", "fingerprint": "fingerprint"}
    for label, name in labels.items():
        value = facts[name]
        options.terminal.say(f"{label:<12} {value.hex() if isinstance(value, bytes) else printable(str(value))}")
    options.terminal.say(f"{'login':<12} {'yes' if is_in else 'ended: orbital login'}")


@command
async def passphrase(
    ctx: typer.Context,
    *,
    passphrase_file: passphrases.FileOption = None,
    new_passphrase_file: passphrases.NewFileOption = None,
) -> None:
    """Change the passphrase. Every other login ends. Without a new one, six random words are proposed."""
    options = given(ctx)
    old = await asyncio.to_thread(passphrases.known, passphrase_file, "Passphrase until now: ")
    new, is_proposed = await asyncio.to_thread(_new_passphrase, new_passphrase_file)
    if is_proposed:
        options.terminal.say("Your new passphrase, shown this once. Write it down: nobody can recover it.")
        options.terminal.say(f"\n    {new}\n", "bold")
    async with options.connected() as client:
        await client.change_passphrase(old, new)
    shown = {"passphrase": new} if is_proposed else {}
    options.terminal.done("changed the passphrase; every other login has ended", ok=True, **shown)


def _new_passphrase(file: Path | None) -> tuple[str, bool]:
    return passphrases.chosen(None if file is None else passphrases.given(file))


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "register": register,
    "login": login,
    "logout": logout,
    "whoami": whoami,
    "passphrase": passphrase,
}
