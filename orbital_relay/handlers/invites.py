"""How one gets into a group: by a link, or by knocking."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Final

from msgspec.structs import asdict

from orbital_protocol import frames
from orbital_protocol.codes import Role
from orbital_protocol.frames import (
    ControlOk,
    ErrorDetails,
    GroupKnockOk,
    InviteCreateOk,
    InviteListOk,
    InviteOpenOk,
    InviteRotateOk,
    JoinRequested,
    Limits,
    Ok,
)
from orbital_protocol.statements import InviteCreated, InviteRevoked, MemberJoined
from orbital_relay import hints, keys, policy
from orbital_relay.caller import Caller, Clock, Peer, require_caller
from orbital_relay.control import Control, Turn, answer, open_statement
from orbital_relay.errors import (
    BadArgument,
    IdConflict,
    InviteInvalid,
    LimitExceeded,
    NotFound,
    RateLimited,
    Unauthenticated,
)
from orbital_relay.limits import KeyedBuckets, network_of
from orbital_relay.store import control as control_store
from orbital_relay.store import groups, invites, live, members
from orbital_relay.store.invites import Door, InviteRow
from orbital_relay.store.members import Newcomer
from orbital_relay.store.pool import Connection, Database
from orbital_relay.store.retries import retried

_CODE: Final = re.compile(r"[A-Za-z0-9]{8}")
_SHARE_OF_AN_ADDRESS: Final = 0.125  # it may try eight times as often as a user: many people may share it


class Invites:
    """Requests about links, the standing code, and those who want to come in.

    `guesses` counts uses of codes by user and by address, `knocks` counts knocks by user.
    """

    def __init__(  # noqa: PLR0913  built in one place
        self,
        *,
        control: Control,
        database: Database,
        limits: Limits,
        relay_hex: str,
        clock: Clock,
        guesses: KeyedBuckets,
        knocks: KeyedBuckets,
    ) -> None:
        self._control = control
        self._database = database
        self._limits = limits
        self._relay_hex = relay_hex
        self._clock = clock
        self._guesses = guesses
        self._knocks = knocks

    # ── links ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, peer: Peer, request: frames.InviteCreate) -> InviteCreateOk:
        """Make a link (admins)."""
        signed = open_statement(request, InviteCreated)
        policy.check_id("statement", signed.statement.invite_id)
        keys.check_signing_key(signed.statement.invite_key, "statement")  # one of small order signs anybody in
        policy.check_ciphertext("sealed_group_key", request.sealed_group_key, self._limits.max_wrap_bytes)
        outcome = await self._control.carry_out(peer, signed, partial(self._create, request))
        async with self._database.connection() as connection:
            invite = await invites.find(connection, outcome.group_id, signed.statement.invite_id)
        if invite is None:
            raise NotFound  # a repeated request, and the group is gone since
        return InviteCreateOk(**asdict(answer(request, outcome)), invite_code=invite.invite_code)

    async def _create(self, request: frames.InviteCreate, turn: Turn[InviteCreated]) -> None:
        statement = turn.statement
        policy.require_role(turn.member, Role.ADMIN)
        policy.check_no_rekey_due(turn.head)
        if 0 < statement.expires_at <= self._clock():
            raise BadArgument("The link would have expired already.", details=ErrorDetails(field="statement"))
        if await invites.exists(turn.connection, statement.invite_id):
            raise IdConflict
        if await invites.count_live(turn.connection, turn.group_id) >= self._limits.max_invites_per_group:
            raise LimitExceeded(
                "The group has as many links as may be.", details=ErrorDetails(limit=self._limits.max_invites_per_group)
            )
        await turn.append()
        code = await invites.unused_code(turn.connection)
        await invites.insert(turn.connection, statement, code, request.sealed_group_key)

    async def list(self, peer: Peer, request: frames.InviteList) -> InviteListOk:
        """The group's live links (admins)."""
        async with self._database.connection() as connection:
            await self._require_admin(connection, peer, request.group_id)
            return InviteListOk(id=request.id, invites=await invites.list_live(connection, request.group_id))

    async def revoke(self, peer: Peer, request: frames.InviteRevoke) -> ControlOk:
        """End a link (admins)."""
        signed = open_statement(request, InviteRevoked)
        return answer(request, await self._control.carry_out(peer, signed, _revoke))

    async def open(self, peer: Peer, request: frames.InviteOpen) -> InviteOpenOk:
        """What is behind a link's code."""
        caller = require_caller(peer)
        self._count_guess(peer, caller)
        opened = None
        if _CODE.fullmatch(request.invite_code):
            async with self._database.connection() as connection:
                opened = await invites.open_link(connection, request.invite_code)
        if opened is None or not caller.may_see(opened.group_id):
            raise InviteInvalid
        return InviteOpenOk(
            id=request.id,
            group_id=opened.group_id,
            invite_id=opened.invite_id,
            key_epoch=opened.key_epoch,
            seq=opened.seq,
            hash=opened.hash,
            sealed_group_key=opened.sealed_group_key,
        )

    async def join(self, peer: Peer, request: frames.GroupJoin) -> ControlOk:
        """Become a member, signed in by a link's key."""
        signed = open_statement(request, MemberJoined)
        if signed.statement.user_id != signed.statement.actor_id:
            raise BadArgument("One joins for oneself.", details=ErrorDetails(field="statement"))
        policy.check_ciphertext("encrypted_group_key", request.encrypted_group_key, self._limits.max_wrap_bytes)
        try:
            outcome = await self._control.carry_out(peer, signed, partial(self._join, request), gate=_with_link)
        except InviteInvalid:
            self._count_guess(peer, require_caller(peer))
            raise
        return answer(request, outcome)

    async def _join(self, request: frames.GroupJoin, turn: Turn[MemberJoined]) -> None:
        newcomer = await _newcomer(turn.connection, turn.group_id, turn.statement.user_id)
        policy.may_join(turn.statement, newcomer, turn.head, self._limits)
        invite = await _shown_link(turn)
        policy.check_sealed_key(invite, turn.head)
        await _let_in(turn, request.encrypted_group_key, invite)

    # ── knocking ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def rotate(self, peer: Peer, request: frames.InviteRotate) -> InviteRotateOk:
        """Make a new standing code, and say whether one may knock with it (admins)."""
        code = await retried(partial(self._rotate, peer, request))
        return InviteRotateOk(id=request.id, invite_code=code, knocking=request.knocking)

    async def _rotate(self, peer: Peer, request: frames.InviteRotate) -> str:
        async with self._database.transaction() as connection:
            await control_store.lock(connection, request.group_id)
            await self._require_admin(connection, peer, request.group_id)
            code = await invites.unused_code(connection)
            await groups.rotate_code(connection, request.group_id, code, knocking=request.knocking)
        return code

    async def knock(self, peer: Peer, request: frames.GroupKnock) -> GroupKnockOk:
        """Ask the admins to be let in, with the standing code, or with a link's code and signature."""
        caller = require_caller(peer)
        policy.check_id("request_id", request.request_id)
        if wait_ms := self._knocks.take(caller.user_id):
            raise RateLimited("You knock too often.", retry_after_ms=wait_ms)
        self._count_guess(peer, caller)
        if not _CODE.fullmatch(request.invite_code):
            raise InviteInvalid
        return await retried(partial(self._knock, caller, request))

    async def _knock(self, caller: Caller, request: frames.GroupKnock) -> GroupKnockOk:
        async with self._database.transaction() as connection:
            door = await self._find_door(connection, caller, request)
            newcomer = await _newcomer(connection, door.group_id, caller.user_id)
            policy.check_knock(door, caller.user_id, newcomer, request)
            policy.may_ask(newcomer)
            if await invites.request_is_anothers(connection, request.request_id, door.group_id, caller.user_id):
                raise IdConflict
            if not newcomer.has_knocked:
                await self._check_room(connection, door.group_id)
            signature = request.invite_signature if door.invite_id else None
            request_id = await invites.put_request(connection, request.request_id, door, caller.user_id, signature)
            await live.notify(connection, hints.knock(self._relay_hex, door.group_id, request_id))
        return GroupKnockOk(id=request.id, group_id=door.group_id, request_id=request_id)

    async def _find_door(self, connection: Connection, caller: Caller, request: frames.GroupKnock) -> Door:
        """The group behind the code, locked, if the code still leads there once it is."""
        seen = await invites.find_door(connection, request.invite_code)
        if seen is None or not caller.may_see(seen.group_id):
            raise InviteInvalid
        await control_store.lock(connection, seen.group_id)
        door = await invites.find_door(connection, request.invite_code)
        if door != seen:
            raise InviteInvalid
        return seen

    async def _check_room(self, connection: Connection, group_id: bytes) -> None:
        limit = self._limits.max_join_requests_per_group
        if await invites.count_requests(connection, group_id) >= limit:
            raise LimitExceeded("Too many are waiting to be let in.", details=ErrorDetails(limit=limit))

    async def announcement(self, group_id: bytes, request_id: bytes) -> tuple[Sequence[bytes], JoinRequested] | None:
        """The admins who should see a knock, and the push that shows it; None if it has been answered already."""
        async with self._database.connection() as connection:
            found = await invites.find_request(connection, request_id)
        if found is None or found.group_id != group_id:
            return None
        return found.admin_ids, JoinRequested(group_id=group_id, request=found.request)

    async def admit(self, peer: Peer, request: frames.GroupAdmit) -> ControlOk:
        """Make a member of somebody who knocked (admins)."""
        signed = open_statement(request, MemberJoined)
        policy.check_ciphertext("encrypted_group_key", request.encrypted_group_key, self._limits.max_wrap_bytes)
        return answer(request, await self._control.carry_out(peer, signed, partial(self._admit, request)))

    async def _admit(self, request: frames.GroupAdmit, turn: Turn[MemberJoined]) -> None:
        statement = turn.statement
        policy.require_role(turn.member, Role.ADMIN)
        newcomer = await members.lock_newcomer(turn.connection, turn.group_id, statement.user_id)
        if newcomer is None:
            raise NotFound
        policy.may_ask(newcomer)
        if not newcomer.has_knocked:
            raise NotFound
        policy.may_join(statement, newcomer, turn.head, self._limits)
        invite = await _shown_link(turn) if policy.names_invite(statement) else None
        await _let_in(turn, request.encrypted_group_key, invite)

    async def deny(self, peer: Peer, request: frames.GroupDeny) -> Ok:
        """Forget that somebody knocked (admins)."""
        await retried(partial(self._deny, peer, request))
        return Ok(id=request.id)

    async def _deny(self, peer: Peer, request: frames.GroupDeny) -> None:
        async with self._database.transaction() as connection:
            await control_store.lock(connection, request.group_id)
            await self._require_admin(connection, peer, request.group_id)
            await invites.delete_request(connection, request.group_id, request.user_id)

    async def _require_admin(self, connection: Connection, peer: Peer, group_id: bytes) -> None:
        caller = require_caller(peer)
        if not caller.may_see(group_id):
            raise NotFound
        policy.require_role(await members.find(connection, group_id, caller.user_id), Role.ADMIN)

    def _count_guess(self, peer: Peer, caller: Caller) -> None:
        """Whoever tries codes, by one account or from one address, is slowed down."""
        wait_ms = max(
            self._guesses.take(caller.user_id), self._guesses.take(network_of(peer.address), _SHARE_OF_AN_ADDRESS)
        )
        if wait_ms:
            raise RateLimited("Too many invite codes were tried.", retry_after_ms=wait_ms)


async def _with_link(turn: Turn[MemberJoined]) -> None:
    """The gate of those who join: only a live link's signature shows that there is such a group."""
    await _shown_link(turn)


async def _shown_link(turn: Turn[MemberJoined]) -> InviteRow:
    """The live link that signed the newcomer in."""
    return policy.check_invite(
        turn.statement, await invites.find(turn.connection, turn.group_id, turn.statement.invite_id)
    )


async def _newcomer(connection: Connection, group_id: bytes, user_id: bytes) -> Newcomer:
    """The caller, who wants to be a member."""
    newcomer = await members.lock_newcomer(connection, group_id, user_id)
    if newcomer is None:
        raise Unauthenticated("The account is gone.")
    return newcomer


async def _let_in(turn: Turn[MemberJoined], encrypted_group_key: bytes, invite: InviteRow | None) -> None:
    """Log the newcomer, give them their wrap, count the link's use."""
    statement = turn.statement
    logged = await turn.append()
    await members.insert(
        turn.connection,
        turn.group_id,
        statement.user_id,
        role=Role.MEMBER,
        encrypted_group_key=encrypted_group_key,
        key_epoch=turn.head.key_epoch,
    )
    if invite is not None:
        policy.check_expiry(invite, logged.created_at)
        await invites.use(turn.connection, statement.invite_id)
    if policy.joining_makes_rekey_due(turn.history):
        await members.require_rekey(turn.connection, turn.group_id)


async def _revoke(turn: Turn[InviteRevoked]) -> None:
    policy.require_role(turn.member, Role.ADMIN)
    invite = await invites.find(turn.connection, turn.group_id, turn.statement.invite_id)
    if invite is None or invite.is_revoked:
        raise NotFound
    await turn.append()
    await invites.revoke(turn.connection, turn.statement.invite_id)
