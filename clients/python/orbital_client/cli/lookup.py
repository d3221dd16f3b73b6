"""Groups, people and messages by what people type: names and titles, or the beginning of an id."""

import asyncio
import re
from collections.abc import Sequence
from typing import Final, TypeVar

from orbital_client import Client, Group, Knock, Member, Message, NotFound
from orbital_client.cli.options import CommandError

N = TypeVar("N", Member, Knock)

_HEXADECIMAL: Final = re.compile(r"[0-9a-fA-F]{1,32}")
_ALL: Final = 2**31
_SHOWN: Final = 5


async def the_group(client: Client, text: str) -> Group:
    """The group of this name or id, verified up to the relay's head."""
    await asyncio.gather(*(group.named() for group in client.groups))
    try:
        group = client.find_group(text)
    except NotFound as error:
        for other in client.groups:
            await other.live()  # one that can't be trusted has no name, and says why
        raise CommandError(str(error).removeprefix(f"{error.code}: ")) from None
    await group.live()
    return group


async def the_member(group: Group, text: str) -> Member:
    """The member of this name or id."""
    return _one(text, await group.members(), "member")


async def the_knock(group: Group, text: str) -> Knock:
    """Whoever of this name or id asks to be admitted."""
    return _one(text, await group.knocks(), "person who knocks")


def _one(text: str, people: Sequence[N], what: str) -> N:
    found = [one for one in people if one.name == text] or [
        one for one in people if text and one.user_id.hex().startswith(text.lower())
    ]
    if not found:
        raise CommandError(f"there is no {what} {text!r}")
    if len(found) > 1:
        raise CommandError(f"{text!r} may be any of {_listed([one.user_id for one in found])}")
    return found[0]


async def the_message(group: Group, text: str) -> Message:
    """The message whose id begins so."""
    found = await _found(group, text)
    if not found:
        raise CommandError(f"there is no message whose id begins with {text!r}")
    return _only(text, found)


async def the_thread(group: Group, text: str) -> Message:
    """The thread whose id begins so, or whose title this is."""
    threads = [message for message in await _found(group, text) if message.kind == "thread"]
    if not threads:
        threads = [thread for thread in await group.threads(limit=_ALL) if thread.title == text]
    if not threads:
        raise CommandError(f"there is no thread {text!r}")
    return _only(text, threads)


async def _found(group: Group, text: str) -> list[Message]:
    return await group.find(text) if _HEXADECIMAL.fullmatch(text) else []


def _only(text: str, found: list[Message]) -> Message:
    if len(found) > 1:
        raise CommandError(f"{text!r} may be any of {_listed([message.id for message in found])}")
    return found[0]


def _listed(ids: Sequence[bytes]) -> str:
    more = ", …" if len(ids) > _SHOWN else ""
    return ", ".join(one.hex() for one in ids[:_SHOWN]) + more
