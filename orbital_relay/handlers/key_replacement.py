"""`key.replace`: new keys for a user, in one transaction with a statement for each group that they are in.

decode → verify (in a thread, without any lock) → lock the groups' heads in id order, then the account → check each as
other statements are checked → append all → the new keys are in force → commit → publish.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from orbital_protocol import ZERO_HASH, statements
from orbital_protocol.chain import control_content_hash
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Cursor, ErrorDetails, Event, KeyReplace, PublicKey, SignedStatement
from orbital_protocol.statements import MAX_STATEMENT_BYTES, KeyReplaced, StatementError, key_preimage, verify_raw
from orbital_relay import keys, policy
from orbital_relay.caller import Caller
from orbital_relay.credentials import Workers
from orbital_relay.errors import (
    BadArgument,
    BadSignature,
    Forbidden,
    IdConflict,
    LimitExceeded,
    MemberSetMismatch,
    Overloaded,
    StaleBase,
    Unauthenticated,
    Unavailable,
)
from orbital_relay.fanout import Publisher
from orbital_relay.store import accounts
from orbital_relay.store import key_replacement as store
from orbital_relay.store.key_replacement import Appended, Written
from orbital_relay.store.pool import Connection, Database
from orbital_relay.store.retries import retried

MAX_KEYS: Final = 256
"""How many pairs of keys a user can have had: `user.get` answers all of them at once."""


@dataclass(frozen=True, slots=True)
class NewKeys:
    """What is to be in force."""

    public_key: PublicKey
    rsa_thumbprint: bytes
    signing_key: bytes


class _KeysMoved(BadSignature):
    """The keys have just been replaced by another request."""


class KeyReplacement:
    """Replaces users' keys."""

    def __init__(self, database: Database, workers: Workers, publisher: Publisher, relay_hex: str) -> None:
        self._database = database
        self._workers = workers
        self._publisher = publisher
        self._relay_hex = relay_hex

    async def carry_out(self, caller: Caller, request: KeyReplace) -> list[Cursor]:
        """Replace the caller's keys; return where each statement stands. The same request again does nothing more."""
        if caller.groups is not None:
            raise Forbidden("This token doesn't reach all groups that the keys are for.")
        new = NewKeys(request.public_key, keys.check_public_key(request.public_key), request.signing_key)
        keys.check_signing_key(request.signing_key)
        written = [_open(caller.user_id, new, signed) for signed in request.statements]
        if len({one.statement.group_id for one in written}) < len(written):
            raise _bad("Two statements are for the same group.")
        if len({one.statement.statement_id for one in written}) < len(written):
            raise IdConflict("Two statements have the same id.")
        old_key, earlier = await self._look(caller.user_id, new, written)
        if earlier is not None:
            return earlier
        if not await self._workers.run(lambda: _are_signed(caller.user_id, new, old_key, written)):
            raise BadSignature
        return await self._replace(caller.user_id, new, old_key, written)

    async def _look(
        self, user_id: bytes, new: NewKeys, written: Sequence[Written]
    ) -> tuple[bytes, list[Cursor] | None]:
        """The signing key in force, and what an earlier try of this very request came to, as of one moment."""
        async with self._database.snapshot() as connection:
            account = await accounts.find(connection, user_id)
            if account is None:
                raise Unauthenticated("The account is gone.")
            earlier = None
            if (account.signing_key, account.rsa_thumbprint) == (new.signing_key, new.rsa_thumbprint):
                earlier = await _earlier(connection, written)
                if earlier is None:
                    raise _bad("These keys are in force already.", field="signing_key")
            else:
                await _check_free(connection, user_id, written)
        return account.signing_key, earlier

    async def _replace(self, user_id: bytes, new: NewKeys, old_key: bytes, written: Sequence[Written]) -> list[Cursor]:
        committing = False

        async def attempt() -> list[Appended]:
            nonlocal committing
            async with self._database.transaction() as connection:
                await _check(connection, user_id, new, old_key, written)
                appended = await store.append(connection, self._relay_hex, user_id, written)
                groups = [one.statement.group_id for one in written]
                await store.replace(
                    connection,
                    user_id,
                    public_key=new.public_key,
                    signing_key=new.signing_key,
                    rsa_thumbprint=new.rsa_thumbprint,
                    group_ids=groups,
                )
                committing = True
            return appended

        try:
            appended = await retried(attempt)
        except (Unavailable, Overloaded, _KeysMoved) as error:
            if not committing and not isinstance(error, _KeysMoved):
                raise
            # Lost during the commit, or overtaken by a retry: what was done, if it was, is found by the ids.
            _, earlier = await self._look(user_id, new, written)
            if earlier is None:
                raise
            return earlier
        by_group = {one.group_id: one for one in appended}
        self._publisher.publish([_event_of(one, by_group[one.statement.group_id]) for one in written])
        return [Cursor(group_id=one.group_id, seq=one.seq, hash=one.hash) for one in appended]


def _open(user_id: bytes, new: NewKeys, signed: SignedStatement) -> Written:
    """Decode a statement, which must be the user's own and speak of these keys."""
    policy.check_size("statements", signed.statement, MAX_STATEMENT_BYTES)
    try:
        statement = statements.decode(signed.statement)
    except StatementError as error:
        raise _bad(str(error)) from error
    if not isinstance(statement, KeyReplaced):
        raise _bad("A statement is of another kind.")
    if statement.actor_id != user_id:
        raise Forbidden("A statement is somebody else's.")
    policy.check_id("statements", statement.statement_id)
    if (statement.signing_key, statement.rsa_thumbprint) != (new.signing_key, new.rsa_thumbprint):
        raise _bad("A statement speaks of other keys.")
    return Written(statement, signed.statement, signed.signature)


def _bad(message: str, field: str = "statements") -> BadArgument:
    return BadArgument(message, details=ErrorDetails(field=field))


async def _earlier(connection: Connection, written: Sequence[Written]) -> list[Cursor] | None:
    """Where these statements stand, if an earlier try put every one of them into the log."""
    logged = await store.find_statements(connection, [one.statement.statement_id for one in written])
    if any(
        one.raw != logged[one.statement.statement_id].raw for one in written if one.statement.statement_id in logged
    ):
        raise IdConflict
    if len(logged) < len(written):
        return None
    found = [logged[one.statement.statement_id] for one in written]
    return [Cursor(group_id=one.group_id, seq=one.seq, hash=one.hash) for one in found]


def _are_signed(user_id: bytes, new: NewKeys, old_key: bytes, written: Sequence[Written]) -> bool:
    """Whether each is signed by the old key, and the new one has signed that it comes after it."""
    preimage = key_preimage(user_id=user_id, signing_key=new.signing_key, rsa_thumbprint=new.rsa_thumbprint)
    return all(
        verify_raw(preimage, signature, new.signing_key)
        for signature in {one.statement.key_signature for one in written}
    ) and all(statements.verify(one.raw, one.signature, old_key) for one in written)


async def _check(
    connection: Connection, user_id: bytes, new: NewKeys, old_key: bytes, written: Sequence[Written]
) -> None:
    """Lock, and decide what must be decided under the lock."""
    await store.lock_heads(connection, [one.statement.group_id for one in written])
    account = await accounts.lock(connection, user_id)
    if account is None:
        raise Unauthenticated("The account is gone.")
    if account.signing_key != old_key:
        raise _KeysMoved
    if await store.user_had_keys(connection, user_id, new.signing_key, new.rsa_thumbprint):
        raise _bad("These keys were in force before: make new ones.", field="signing_key")
    if await store.count_keys(connection, user_id) >= MAX_KEYS:
        raise LimitExceeded("The keys were replaced as often as may be.", details=ErrorDetails(limit=MAX_KEYS))
    await _check_free(connection, user_id, written)
    _check_bases(written, await store.read_bases(connection, [one.statement for one in written]))


async def _check_free(connection: Connection, user_id: bytes, written: Sequence[Written]) -> None:
    """The statements are for the user's groups, and their ids are unused.

    Looked at before the work on signatures, and again under the locks, where it counts.
    """
    _check_groups(written, await store.list_memberships(connection, user_id))
    if await store.find_statements(connection, [one.statement.statement_id for one in written]):
        raise IdConflict


def _check_groups(written: Sequence[Written], memberships: frozenset[bytes]) -> None:
    """There is a statement for each of the user's groups and for nothing else."""
    named = {one.statement.group_id for one in written}
    if named != memberships:
        missing, unexpected = sorted(memberships - named), sorted(named - memberships)
        raise MemberSetMismatch(
            "The statements are not for exactly the user's groups.",
            details=ErrorDetails(missing=missing, unexpected=unexpected),
        )


def _check_bases(written: Sequence[Written], bases: Mapping[bytes, store.Base]) -> None:
    """Each was written under its group's present key, on top of what the log holds."""
    for one in written:
        statement, base = one.statement, bases.get(one.statement.group_id)
        if base is None:
            raise StaleBase
        policy.check_epoch(statement.key_epoch, base.head)
        policy.check_base(statement, base.head, ZERO_HASH if statement.base_seq == 0 else base.hash)


def _event_of(one: Written, appended: Appended) -> Event:
    """The event as subscribers get it."""
    return Event(
        group_id=appended.group_id,
        seq=appended.seq,
        hash=appended.hash,
        kind=Kind.KEY_REPLACED,
        object_id=one.statement.statement_id,
        actor_id=one.statement.actor_id,
        key_epoch=appended.key_epoch,
        created_at=appended.created_at,
        content_hash=control_content_hash(one.raw, one.signature),
        statement=one.raw,
        signature=one.signature,
    )
