"""What all relays on this database must agree on."""

from typing import Final

from orbital_relay.store.pool import Connection
from orbital_relay.store.queries import query

_AGREE: Final = query("agree_on_fact")
_REPLACE: Final = query("replace_fact")
_FORGET: Final = query("forget_fact")
_COUNT_RELAYS: Final = query("count_relays")


async def agree_on(connection: Connection, name: str, value: str) -> str:
    """Put the fact down if nobody has; return what is there."""
    return str(await connection.fetchval(_AGREE, name, value))


async def replace(connection: Connection, name: str, value: str) -> None:
    """Put another value down."""
    await connection.execute(_REPLACE, name, value)


async def forget(connection: Connection, name: str) -> None:
    """Leave it to whoever comes next to put a value down."""
    await connection.execute(_FORGET, name)


async def count_relays(connection: Connection) -> int:
    """How many relays are connected to this database, the asking one among them."""
    return int(await connection.fetchval(_COUNT_RELAYS))
