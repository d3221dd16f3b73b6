"""Groups and their keys."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from msgspec.structs import asdict, replace

from orbital_protocol import frames
from orbital_protocol.codes import Role
from orbital_protocol.frames import (
    ControlOk,
    GroupCreateOk,
    GroupGetOk,
    GroupKeysOk,
    GroupListOk,
    Limits,
    Ok,
)
from orbital_protocol.statements import (
    GroupCreated,
    GroupDeleted,
    GroupRekeyed,
    GroupTransferred,
    GroupUpdated,
    MemberLeft,
)
from orbital_relay import policy
from orbital_relay.caller import Peer, require_caller
from orbital_relay.control import Control, Turn, answer, open_statement
from orbital_relay.errors import IdConflict, NotFound, RateLimited, Unauthenticated
from orbital_relay.limits import KeyedBuckets
from orbital_relay.store import control as control_store
from orbital_relay.store import groups, invites, members
from orbital_relay.store.groups import Group
from orbital_relay.store.pool import Database
from orbital_relay.store.retries import retried

_EPOCHS_A_PAGE: Final = 64


class Groups:
    """Requests about a group as a whole, and about its keys. `rekeys` counts those that were not due, by group."""

    def __init__(self, control: Control, database: Database, limits: Limits, rekeys: KeyedBuckets) -> None:
        self._control = control
        self._database = database
        self._limits = limits
        self._rekeys = rekeys

    async def create(self, peer: Peer, request: frames.GroupCreate) -> GroupCreateOk:
        """Make a group that the caller owns."""
        signed = open_statement(request, GroupCreated)
        policy.check_id("statement", signed.statement.group_id)
        self._check_name_size(request.encrypted_name)
        policy.check_ciphertext("encrypted_group_key", request.encrypted_group_key, self._limits.max_wrap_bytes)
        outcome = await self._control.carry_out(peer, signed, partial(self._create, request), gate=_unused)
        async with self._database.connection() as connection:
            code = await groups.find_standing_code(connection, outcome.group_id, signed.statement.actor_id)
        if code is None:
            raise NotFound  # a repeated request, by one who handed the group over since
        return GroupCreateOk(**asdict(answer(request, outcome)), invite_code=code)

    async def _create(self, request: frames.GroupCreate, turn: Turn[GroupCreated]) -> None:
        statement = turn.statement
        founder = await members.lock_newcomer(turn.connection, turn.group_id, statement.actor_id)
        if founder is None:
            raise Unauthenticated("The account is gone.")
        policy.check_name(statement, request.encrypted_name)
        policy.check_keys(statement, founder.keys)
        policy.check_groups(founder.groups, self._limits)
        await turn.append()
        code = await invites.unused_code(turn.connection)
        await groups.insert_group(turn.connection, statement, request.encrypted_name, code)
        await members.insert(
            turn.connection,
            turn.group_id,
            statement.actor_id,
            role=Role.OWNER,
            encrypted_group_key=request.encrypted_group_key,
            key_epoch=statement.key_epoch,
        )

    async def list(self, peer: Peer, request: frames.GroupList) -> GroupListOk:
        """The caller's groups, as far as their token reaches."""
        caller = require_caller(peer)
        async with self._database.connection() as connection:
            found = await groups.list_groups(connection, caller.user_id)
        return GroupListOk(id=request.id, groups=[group for group in found if caller.may_see(group.group_id)])

    async def get(self, peer: Peer, request: frames.GroupGet) -> GroupGetOk:
        """A group of the caller's; its admins also see the standing code and who knocks."""
        caller = require_caller(peer)
        if not caller.may_see(request.group_id):
            raise NotFound
        async with self._database.connection() as connection:
            group = await groups.find_group(connection, request.group_id, caller.user_id)
            if group is None:
                raise NotFound
            if group.role < Role.ADMIN:
                return _shown(request, group)
            knocking = await invites.list_requests(connection, request.group_id)
        return _shown(request, group, group.invite_code, knocking)

    async def update(self, peer: Peer, request: frames.GroupUpdate) -> ControlOk:
        """Rename a group (admins)."""
        signed = open_statement(request, GroupUpdated)
        self._check_name_size(request.encrypted_name)
        return answer(request, await self._control.carry_out(peer, signed, partial(_rename, request)))

    async def delete(self, peer: Peer, request: frames.GroupDelete) -> ControlOk:
        """Delete a group (its owner). What stays is its head and the event that says so."""
        signed = open_statement(request, GroupDeleted)
        return answer(request, await self._control.carry_out(peer, signed, _delete))

    async def transfer(self, peer: Peer, request: frames.GroupTransfer) -> ControlOk:
        """Make another member the owner."""
        signed = open_statement(request, GroupTransferred)
        return answer(request, await self._control.carry_out(peer, signed, _transfer))

    async def leave(self, peer: Peer, request: frames.GroupLeave) -> ControlOk:
        """Leave a group."""
        signed = open_statement(request, MemberLeft)
        return answer(request, await self._control.carry_out(peer, signed, _leave))

    async def keys(self, peer: Peer, request: frames.GroupKeys) -> GroupKeysOk:
        """The wraps ever made for the caller in a group of theirs, a page of epochs at a time."""
        caller = require_caller(peer)
        if not caller.may_see(request.group_id):
            raise NotFound
        async with self._database.connection() as connection:
            wraps = await members.list_group_keys(
                connection, request.group_id, caller.user_id, request.after_key_epoch or 0, _EPOCHS_A_PAGE + 1
            )
        if wraps is None:
            raise NotFound
        beyond = sorted({wrap.key_epoch for wrap in wraps})[_EPOCHS_A_PAGE:]  # one more tells whether there is more
        page = [wrap for wrap in wraps if wrap.key_epoch not in beyond]
        return GroupKeysOk(id=request.id, keys=page, more=bool(beyond))

    async def rekey(self, peer: Peer, request: frames.GroupRekey) -> ControlOk:
        """Put a new key in force, wrapped for exactly the members that there are."""
        signed = open_statement(request, GroupRekeyed)
        self._check_name_size(request.encrypted_name)
        for wrap in request.encrypted_group_keys:
            policy.check_ciphertext("encrypted_group_keys", wrap.encrypted_group_key, self._limits.max_wrap_bytes)
        done = answer(request, await self._control.carry_out(peer, signed, partial(self._rekey, request)))
        return replace(done, key_epoch=signed.statement.new_key_epoch)

    async def _rekey(self, request: frames.GroupRekey, turn: Turn[GroupRekeyed]) -> None:
        statement = turn.statement
        policy.may_rekey(turn.member, turn.head, statement)
        policy.check_name(statement, request.encrypted_name)
        policy.check_previous_key(statement.previous_key, turn.history)
        policy.check_recipients(
            request.encrypted_group_keys, await members.list_recipients(turn.connection, turn.group_id)
        )
        if not turn.head.rekey_required and (wait_ms := self._rekeys.take(turn.group_id)):
            raise RateLimited("The group was given new keys too often.", retry_after_ms=wait_ms)
        await turn.append()
        await members.rekey(
            turn.connection,
            turn.group_id,
            statement.new_key_epoch,
            request.encrypted_name,
            request.encrypted_group_keys,
        )

    async def wrap(self, peer: Peer, request: frames.GroupWrap) -> Ok:
        """Wrap a key that the caller holds for another member (again)."""
        policy.check_ciphertext("encrypted_group_key", request.encrypted_group_key, self._limits.max_wrap_bytes)
        if not require_caller(peer).may_see(request.group_id):
            raise NotFound
        await retried(partial(self._wrap, peer, request))
        return Ok(id=request.id)

    async def _wrap(self, peer: Peer, request: frames.GroupWrap) -> None:
        group_id, user_id, epoch = request.group_id, request.user_id, request.key_epoch
        async with self._database.transaction() as connection:
            await control_store.lock(connection, group_id)
            policy.require_member(await members.find(connection, group_id, require_caller(peer).user_id))
            recipient = policy.require_member(await members.find(connection, group_id, user_id))
            policy.may_wrap(recipient, await control_store.read_epoch(connection, group_id), request)
            wraps = await members.count_wraps(connection, group_id, user_id, epoch, request.encrypted_group_key)
            if wraps.has_this:
                return
            policy.check_wraps(wraps)
            await members.insert_wrap(connection, group_id, user_id, epoch, request.encrypted_group_key)

    def _check_name_size(self, encrypted_name: bytes) -> None:
        policy.check_ciphertext("encrypted_name", encrypted_name, self._limits.max_name_bytes)


def _shown(
    request: frames.GroupGet,
    group: Group,
    invite_code: str | None = None,
    join_requests: Sequence[frames.JoinRequest] | None = None,
) -> GroupGetOk:
    return GroupGetOk(
        id=request.id,
        group_id=request.group_id,
        encrypted_name=group.encrypted_name,
        name_key_epoch=group.name_key_epoch,
        history=group.history,
        knocking=group.knocking,
        created_by=group.created_by,
        created_at=group.created_at,
        role=group.role,
        key_epoch=group.key_epoch,
        rekey_required=group.rekey_required,
        seq=group.seq,
        hash=group.hash,
        member_count=group.member_count,
        invite_code=invite_code,
        join_requests=None if join_requests is None else [*join_requests],
    )


async def _unused(turn: Turn[GroupCreated]) -> None:
    """The gate of a new group: its id never meant another one, not even one that was deleted."""
    if turn.head.seq:
        raise IdConflict


async def _rename(request: frames.GroupUpdate, turn: Turn[GroupUpdated]) -> None:
    policy.require_role(turn.member, Role.ADMIN)
    policy.check_no_rekey_due(turn.head)
    policy.check_name(turn.statement, request.encrypted_name)
    await turn.append()
    await groups.rename(turn.connection, turn.group_id, request.encrypted_name, turn.head.key_epoch)


async def _delete(turn: Turn[GroupDeleted]) -> None:
    policy.require_role(turn.member, Role.OWNER)
    await turn.append()
    await groups.bury(turn.connection, turn.group_id)


async def _transfer(turn: Turn[GroupTransferred]) -> None:
    heir = turn.statement.user_id
    policy.may_transfer(turn.member, await members.find(turn.connection, turn.group_id, heir))
    await turn.append()
    await groups.transfer(turn.connection, turn.group_id, turn.statement.actor_id, heir)


async def _leave(turn: Turn[MemberLeft]) -> None:
    policy.may_leave(turn.member)
    await turn.append()
    await members.delete(turn.connection, turn.group_id, turn.statement.actor_id)
