"""The members of groups, and what they may take back."""

from orbital_protocol import frames
from orbital_protocol.codes import Role
from orbital_protocol.frames import ControlOk, Limits, MemberListOk
from orbital_protocol.statements import MemberRemoved, MemberRole, MemberUnbanned, PostDeleted
from orbital_relay import policy
from orbital_relay.caller import Peer, require_caller
from orbital_relay.control import Control, Turn, answer, open_statement
from orbital_relay.errors import NotFound
from orbital_relay.store import groups, invites, members
from orbital_relay.store.pool import Database


class Members:
    """Requests about the members of a group, and the deletion of posts."""

    def __init__(self, control: Control, database: Database, limits: Limits) -> None:
        self._control = control
        self._database = database
        self._limits = limits

    async def list(self, peer: Peer, request: frames.MemberList) -> MemberListOk:
        """A page of a group's members, by user id, with the head that it belongs to."""
        caller = require_caller(peer)
        if not caller.may_see(request.group_id):
            raise NotFound
        limit = min(request.limit, self._limits.page_limit)
        async with self._database.connection() as connection:
            roll = await members.page(connection, request.group_id, caller.user_id, request.after_user_id, limit + 1)
        if roll is None:
            raise NotFound
        return MemberListOk(
            id=request.id,
            members=roll.members[:limit],
            seq=roll.seq,
            hash=roll.hash,
            more=len(roll.members) > limit,
        )

    async def remove(self, peer: Peer, request: frames.MemberRemove) -> ControlOk:
        """Remove a member of a lower role, and keep them out where the statement says `ban`."""
        signed = open_statement(request, MemberRemoved)
        return answer(request, await self._control.carry_out(peer, signed, _remove))

    async def unban(self, peer: Peer, request: frames.MemberUnban) -> ControlOk:
        """Lift a ban (admins)."""
        signed = open_statement(request, MemberUnbanned)
        return answer(request, await self._control.carry_out(peer, signed, _unban))

    async def set_role(self, peer: Peer, request: frames.MemberSetRole) -> ControlOk:
        """Set a role below the caller's own for a member below them."""
        signed = open_statement(request, MemberRole)
        return answer(request, await self._control.carry_out(peer, signed, _set_role))

    async def delete_post(self, peer: Peer, request: frames.PostDelete) -> ControlOk:
        """Erase a thread, reply or annotation (its author, or an admin)."""
        signed = open_statement(request, PostDeleted)
        return answer(request, await self._control.carry_out(peer, signed, _delete_post))


async def _remove(turn: Turn[MemberRemoved]) -> None:
    user_id = turn.statement.user_id
    policy.require_above(turn.member, await members.find(turn.connection, turn.group_id, user_id))
    await turn.append()
    await members.delete(turn.connection, turn.group_id, user_id)
    await invites.revoke_all(turn.connection, turn.group_id)
    if turn.statement.ban:
        await members.ban(turn.connection, turn.group_id, user_id)


async def _unban(turn: Turn[MemberUnbanned]) -> None:
    user_id = turn.statement.user_id
    policy.require_role(turn.member, Role.ADMIN)
    if not await members.is_banned(turn.connection, turn.group_id, user_id):
        raise NotFound
    await turn.append()
    await members.unban(turn.connection, turn.group_id, user_id)


async def _set_role(turn: Turn[MemberRole]) -> None:
    statement = turn.statement
    target = await members.find(turn.connection, turn.group_id, statement.user_id)
    policy.may_set_role(turn.member, target, statement.role)
    await turn.append()
    await members.set_role(turn.connection, turn.group_id, statement.user_id, statement.role)


async def _delete_post(turn: Turn[PostDeleted]) -> None:
    target_id = turn.statement.target_id
    policy.may_erase(turn.member, await groups.find_post(turn.connection, target_id), turn.group_id)
    await turn.append()
    await groups.erase_post(turn.connection, target_id)
