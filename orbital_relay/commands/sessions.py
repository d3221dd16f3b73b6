"""`orbital-relay session`: who is logged in, and out."""

import asyncio
import time
from typing import Annotated
from uuid import UUID

import typer

from orbital_relay import admin
from orbital_relay.commands.database import CommandError, opened
from orbital_relay.commands.options import ConfigOption, JsonOption, SetOption, settings_from
from orbital_relay.commands.output import print_json, print_table
from orbital_relay.config import Settings
from orbital_relay.store import operators as store
from orbital_relay.store.operators import SessionRow

app = typer.Typer(no_args_is_help=True, help="Look at sessions and bot tokens, and end them.")


def now_us() -> int:
    """Microseconds since 1970 UTC."""
    return time.time_ns() // 1000


@app.command("list")
def list_sessions(
    *,
    username: Annotated[str | None, typer.Argument(help="Only this user's.")] = None,
    file: ConfigOption = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the sessions and bot tokens that are good, the newest first."""
    found = asyncio.run(_list(settings_from(file, sets), username))
    if as_json:
        print_json(found)
        return
    header = ("kind", "id", "user", "device or name", "created", "last used", "expires")
    print_table(
        header,
        ((s.kind, s.session_id, s.username, s.name, s.created_at, s.last_used_at, s.expires_at) for s in found),
    )


async def _list(settings: Settings, username: str | None) -> list[SessionRow]:
    async with opened(settings) as connection:
        return await store.list_sessions(connection, username)


@app.command()
def revoke(
    session: Annotated[UUID, typer.Argument(help="Id of the session or bot token.")],
    *,
    file: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """End a session or bot token for good; its connections are closed on every relay."""
    asyncio.run(_revoke(settings_from(file, sets), session))
    typer.echo(f"revoked {session}")


async def _revoke(settings: Settings, session: UUID) -> None:
    async with opened(settings) as connection, connection.transaction():
        owner = await store.find_session_owner(connection, session.bytes)
        if owner is None:
            raise CommandError(f"there is no session or bot token {session}")
        kind, user_id = owner
        if kind == "session":
            await admin.end_session(connection, session.bytes, user_id, now_us)
        else:
            await admin.delete_token(connection, session.bytes, user_id)
