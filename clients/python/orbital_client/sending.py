"""From words to an acknowledged post: sealed under the key in force, and anew when another one comes in force."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from orbital_client.crypto import envelopes
from orbital_client.crypto.contents import Content, Head, encode
from orbital_client.crypto.envelopes import Field, Place
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.errors import CannotPost, KeyChanged, NotFound, OutOfDate
from orbital_client.identity import Identity
from orbital_client.people import People
from orbital_client.replica import Replica
from orbital_client.wire import Posted
from orbital_client.wire.groups import OtherContent
from orbital_protocol import ZERO_ID, chain

PATIENCE_S: Final = 60.0
"""How long a post waits for the group's new key."""

_ATTEMPTS: Final = 8


class Sender:
    """Posts in one group."""

    def __init__(self, replica: Replica, people: People, identity: Identity) -> None:
        self._replica = replica
        self._people = people
        self._identity = identity

    @property
    def user_id(self) -> bytes:
        """Who posts."""
        return self._identity.user_id

    async def key(self, patience_s: float = PATIENCE_S) -> GroupKey:
        """The key in force, once nothing stands in the way of using it. Raises KeyChanged, CannotPost, LogBroken."""
        replica = self._replica
        if not replica.log.position.seq:
            await replica.loaded()
        is_there = self._is_ready() or await replica.pulse.until(self._is_ready, patience_s)
        replica.check()
        if replica.gone is not None:
            raise CannotPost(f"you are not in this group any more ({replica.gone})")
        if tainted_at := replica.log.state.tainted_at:
            raise CannotPost(f"the relay has logged a forged change of this group (event {tainted_at})")
        for user_id in replica.changed_keys:
            raise KeyChanged(user_id, self._people.name(user_id))
        key = replica.keyring.current
        if not is_there or key is None:
            what = "you have not got its key" if key is None else "no member who could make it has been online"
            raise CannotPost(f"the group needs a new key, and {what}: it is sent as soon as you try again after that")
        return key

    async def key_epoch(self) -> int:
        """The epoch of the key in force (`wire.uploads.Epochs`)."""
        return (await self.key()).epoch

    async def info(self) -> None:
        """Learn what the log has by now."""
        await self._replica.catch_up()

    def _is_ready(self) -> bool:
        replica = self._replica
        return self._is_stuck() or not (replica.log.state.rekey_due or replica.keyring.current is None)

    def _is_stuck(self) -> bool:
        replica = self._replica
        is_over = replica.broken is not None or replica.gone is not None
        return is_over or bool(replica.changed_keys or replica.log.state.tainted_at)

    def said(self) -> tuple[int, Head]:
        """When, and on what: the beginning of every content."""
        position = self._replica.log.position
        return time.time_ns() // 1000, Head(position.seq, position.hash)

    def place(self, key: GroupKey, kind: int, field: Field, object_id: bytes, parent_id: bytes = ZERO_ID) -> Place:
        """Where an envelope of this member's belongs."""
        return Place(kind, field, self._replica.group_id, self._identity.user_id, key.epoch, object_id, parent_id)

    def seal(self, key: GroupKey, place: Place, content: Content) -> bytes:
        """Seal a content for its place."""
        return envelopes.seal(key, place, encode(content), self._identity.signing)

    async def post(
        self,
        parent_id: bytes,
        seal: Callable[[GroupKey], list[bytes]],
        send: Callable[[list[bytes], int], Awaitable[Posted]],
    ) -> Posted:
        """Seal and send, again after each change of the key, until it is acknowledged.

        `seal` makes the fields, `send` posts them under an epoch, each time with the same id. The acknowledgement
        counts only for what was sealed here; the log is held to it.
        """
        sealed_before: list[list[bytes]] = []
        for attempt in range(_ATTEMPTS):
            key = await self.key()
            fields = seal(key)
            sealed_before.append(fields)
            try:
                posted = await send(fields, key.epoch)
            except OtherContent as other:  # of an earlier attempt whose answer was lost, if it is one of these
                if other.content_hash not in (_content_hash(parent_id, fields) for fields in sealed_before):
                    raise
                posted = other.posted
            except OutOfDate:
                await self._replica.catch_up()
                await asyncio.sleep(0.05 * attempt)
                continue
            except NotFound:
                await self._replica.catch_up()  # it may be this user who is gone
                raise
            await self._replica.acknowledge(posted)
            return posted
        raise CannotPost("the group's key keeps changing")


def _content_hash(parent_id: bytes, fields: list[bytes]) -> bytes:
    return chain.content_hash(parent_id, [chain.field_hash(field) for field in fields])
