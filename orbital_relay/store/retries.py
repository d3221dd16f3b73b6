"""Transactions that lost to another one are tried again: nothing was written, the same again may succeed."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg

from orbital_relay.errors import Overloaded
from orbital_relay.store.pool import TRY_AGAIN

T = TypeVar("T")

_TRIES: Final = 3
_LOST: Final = (*TRY_AGAIN, asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError)
"""Beside deadlocks: a row was made, or one that ours refers to was deleted, between our look at it and our insert."""


async def retried(transaction: Callable[[], Awaitable[T]]) -> T:
    """Carry out a transaction, from its beginning to its commit, up to three times; raise Overloaded after that."""
    for _ in range(_TRIES - 1):
        try:
            return await transaction()
        except _LOST:
            continue
    try:
        return await transaction()
    except _LOST as error:
        raise Overloaded from error
