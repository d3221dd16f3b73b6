"""`orbital-relay user`: accounts. Ordinarily clients make them; the operator disables, recovers and deletes."""

import asyncio
import sys
import uuid
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from orbital_protocol import ZERO_ID
from orbital_protocol.fields import Username
from orbital_protocol.frames import PublicKey
from orbital_relay import admin, keys
from orbital_relay.commands.database import CommandError, opened
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import print_json, print_table
from orbital_relay.commands.sessions import now_us
from orbital_relay.config import Settings
from orbital_relay.credentials import Passwords, Workers, check_new_password
from orbital_relay.errors import RequestError
from orbital_relay.store import accounts
from orbital_relay.store import operators as store
from orbital_relay.store.accounts import Account, NewAccount, OwnsGroupsError
from orbital_relay.store.operators import UserRow
from orbital_relay.store.pool import Connection
from orbital_relay.store.retries import retried

app = typer.Typer(no_args_is_help=True, help="Make, disable, recover and delete accounts.")

_SIGNING_KEY_BYTES: Final = 32

NameArgument = Annotated[str, typer.Argument(help="Name of the user.")]
PasswordOption = Annotated[
    Path | None,
    typer.Option("--password-file", help="File with the password, - for standard input; otherwise it is asked for."),
]


@app.command()
def add(  # noqa: PLR0913  one parameter a flag
    username: NameArgument,
    *,
    user_id: Annotated[uuid.UUID, typer.Option(help="Id that the client has made.")],
    public_key: Annotated[Path, typer.Option(help="File with the RSA public key as a JWK.")],
    signing_key: Annotated[str, typer.Option(help="The Ed25519 public key, base64url.")],
    bot: Annotated[bool, typer.Option("--bot", help="The account is a bot's.")] = False,
    password_file: PasswordOption = None,
    file: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Make an account for keys that a client has made; the private ones stay there."""
    settings = settings_from(file, sets)
    jwk, signing = _read_jwk(public_key), _read_signing_key(signing_key)
    try:
        msgspec.convert(username, Username)
        thumbprint = keys.check_public_key(jwk)
        keys.check_signing_key(signing)
    except msgspec.ValidationError:
        raise CommandError("a username has 3 to 50 of a-z, 0-9 and _") from None
    except RequestError as error:
        raise CommandError(str(error)) from None
    account = NewAccount(
        user_id=user_id.bytes,
        username=username,
        password_hash=_hashed(_password(password_file)),
        public_key=jwk,
        rsa_thumbprint=thumbprint,
        signing_key=signing,
        is_bot=bot,
    )
    asyncio.run(_add(settings, account))
    typer.echo(f"added {username}, id {user_id}")


async def _add(settings: Settings, account: NewAccount) -> None:
    async with opened(settings) as connection, connection.transaction():
        claims = await accounts.find_claims(connection, account.user_id, account.username)
        if account.user_id == ZERO_ID or claims.id_known or not await accounts.insert(connection, account):
            raise CommandError("the name or the id is in use")


@app.command("list")
def list_users(*, file: ConfigOption = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """List the accounts."""
    users = asyncio.run(_list(settings_from(file, sets)))
    if as_json:
        print_json(users)
        return
    print_table(
        ("user", "id", "bot", "groups", "sessions", "created", "last used", "disabled"),
        (
            (u.username, u.user_id, u.is_bot, u.groups, u.sessions, u.created_at, u.last_used_at, u.disabled_at)
            for u in users
        ),
    )


async def _list(settings: Settings) -> list[UserRow]:
    async with opened(settings) as connection:
        return await store.list_users(connection)


@app.command()
def disable(username: NameArgument, *, file: ConfigOption = None, sets: SetOption = None) -> None:
    """Keep a user out: every session ends, tokens are refused, the groups stay as they are."""
    changed = asyncio.run(_set_disabled(settings_from(file, sets), username, disabled=True))
    typer.echo(f"disabled {username}" if changed else f"{username} was disabled before")


@app.command()
def enable(username: NameArgument, *, file: ConfigOption = None, sets: SetOption = None) -> None:
    """Let a disabled user in again; they log in anew."""
    changed = asyncio.run(_set_disabled(settings_from(file, sets), username, disabled=False))
    typer.echo(f"enabled {username}" if changed else f"{username} was not disabled")


async def _set_disabled(settings: Settings, username: str, *, disabled: bool) -> bool:
    async with opened(settings) as connection, connection.transaction():
        account = await _locked(connection, username)
        if account.disabled == disabled:
            return False
        return await (admin.disable if disabled else admin.enable)(connection, account.user_id)


@app.command()
def passwd(
    username: NameArgument,
    *,
    password_file: PasswordOption = None,
    file: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Give a user another login password: every session ends. Keys and key backup stay as the client sealed them."""
    settings = settings_from(file, sets)
    asyncio.run(_passwd(settings, username, _hashed(_password(password_file))))
    typer.echo(f"changed the password of {username}, and ended every session")


async def _passwd(settings: Settings, username: str, password_hash: str) -> None:
    async with opened(settings) as connection, connection.transaction():
        account = await _locked(connection, username)
        await admin.set_password(connection, account.user_id, password_hash, now_us)


@app.command()
def delete(
    username: NameArgument,
    *,
    with_groups: Annotated[
        bool, typer.Option("--with-groups", help="Delete the groups that the user owns, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    file: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Delete an account for good: it leaves its groups, what it wrote stays there without a name."""
    settings = settings_from(file, sets)
    if not yes:
        typer.confirm(
            f"Delete {username} for good{', and every group that they own' if with_groups else ''}?", abort=True
        )
    left = asyncio.run(_delete(settings, username, with_groups=with_groups))
    typer.echo(f"deleted {username}, who was in {left} groups")


async def _delete(settings: Settings, username: str, *, with_groups: bool) -> int:
    async with opened(settings) as connection:

        async def attempt() -> int:
            account = await accounts.find_by_name(connection, username)
            if account is None:
                raise CommandError(f"there is no user {username}")
            await accounts.prepare_delete(connection, account.user_id, with_groups=with_groups)
            async with connection.transaction():
                return len(await admin.delete(connection, account.user_id, with_groups=with_groups))

        try:
            return await retried(attempt)
        except OwnsGroupsError:
            raise CommandError(f"{username} owns groups: they transfer them first, or give --with-groups") from None


async def _locked(connection: Connection, username: str) -> Account:
    account = await accounts.find_by_name(connection, username)
    locked = None if account is None else await accounts.lock(connection, account.user_id)
    if locked is None:
        raise CommandError(f"there is no user {username}")
    return locked


# ── what is handed in ───────────────────────────────────────────────────────────────────────────────────────────────


def _read_jwk(path: Path) -> PublicKey:
    try:
        return msgspec.json.decode(path.read_bytes(), type=PublicKey)
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandError(f"{path} can't be read as a JWK: {error}") from None


def _read_signing_key(text: str) -> bytes:
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (Base64Error, ValueError):
        raw = b""
    if len(raw) != _SIGNING_KEY_BYTES:
        raise CommandError(f"--signing-key must be base64url of {_SIGNING_KEY_BYTES} bytes")
    return raw


def _password(path: Path | None) -> str:
    """From the file, from standard input, or typed twice and never shown."""
    if path is None and sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    try:
        text = sys.stdin.readline() if path in (None, Path("-")) else (path or Path()).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} can't be read as a password: {error}") from None
    return text.removesuffix("\n").removesuffix("\r")


def _hashed(password: str) -> str:
    try:
        raw = check_new_password(password)
    except RequestError as error:
        raise CommandError(str(error)) from None

    async def run() -> str:
        workers = Workers(threads=1, queue=0)
        try:
            return await Passwords(workers).hash(raw)
        finally:
            workers.close()

    return asyncio.run(run())
