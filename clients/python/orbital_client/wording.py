"""What happened in a group, in words for people."""

from collections.abc import Callable
from typing import Final

from orbital_protocol import ZERO_ID
from orbital_protocol.codes import Kind, Role
from orbital_protocol.frames import Event
from orbital_protocol.statements import (
    AnyStatement,
    GroupCreated,
    GroupDeleted,
    GroupRekeyed,
    GroupTransferred,
    GroupUpdated,
    InviteCreated,
    InviteRevoked,
    KeyReplaced,
    MemberJoined,
    MemberLeft,
    MemberRemoved,
    MemberRole,
    MemberUnbanned,
)

NameOf = Callable[[bytes], str]

ROLES: Final = {Role.MEMBER: "a member", Role.ADMIN: "an admin", Role.OWNER: "the owner"}

_LINES: Final[dict[type, str]] = {
    GroupCreated: "{actor} created the group",
    GroupUpdated: "{actor} renamed the group",
    GroupDeleted: "{actor} deleted the group",
    GroupTransferred: "{actor} made {user} the owner",
    GroupRekeyed: "{actor} gave the group a new key",
    MemberJoined: "{actor} admitted {user}",
    MemberLeft: "{actor} left",
    MemberRemoved: "{actor} removed {user}",
    MemberUnbanned: "{actor} lifted the ban of {user}",
    MemberRole: "{actor} made {user} {role}",
    InviteCreated: "{actor} made an invite",
    InviteRevoked: "{actor} revoked an invite",
    KeyReplaced: "{actor} has new keys",
}


def describe(event: Event, statement: AnyStatement | None, name: NameOf) -> str:
    """One line about a change of the group; `statement` is None for what the relay itself appended."""
    if statement is None:
        if event.kind == Kind.MEMBER_LEFT:
            return f"{name(event.object_id)} deleted their account"
        return "the group ended with its owner's account"
    line = _LINES.get(type(statement), "{actor} changed the group")
    if isinstance(statement, MemberJoined) and statement.actor_id == statement.user_id:
        line = "{actor} joined"
    if isinstance(statement, MemberRemoved) and statement.ban:
        line = "{actor} banned {user}"
    user_id = getattr(statement, "user_id", ZERO_ID)
    role = ROLES[Role(statement.role)] if isinstance(statement, MemberRole) else ""
    return line.format(actor=name(statement.actor_id), user=name(user_id), role=role)
