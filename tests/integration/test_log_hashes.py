"""The chain as PostgreSQL computes it is the chain as `orbital_protocol` computes it, for each way into the log."""

import random

import pytest

from orbital_protocol import chain, frames
from orbital_protocol.codes import Kind
from orbital_protocol.statements import GroupRekeyed, MemberRemoved, PostDeleted
from tests.people import connected
from tests.worlds import World, verified_log

EXTREMES = (0, 1, 2**31 - 1)


@pytest.mark.each_postgres
async def test_each_way_into_the_log_is_chained_alike(world: World) -> None:
    alice, bob, carol = await world.people("alice", "bob", "carol")
    group_id = await world.group(alice, bob, carol)
    thread_id = await world.post(alice, group_id)
    reply_id = await world.post(bob, group_id, thread_id)
    await world.post(carol, group_id, reply_id, Kind.ANNOTATION_POSTED)
    await world.tell(bob, group_id, frames.PostDelete, PostDeleted, target_id=reply_id)
    await world.tell(alice, group_id, frames.MemberRemove, MemberRemoved, user_id=carol.user_id, ban=True)
    await world.sql.execute("SELECT delete_user_v1($1, $2, FALSE)", "ab" * 16, bob.user_id)
    wrap = frames.WrappedKey(user_id=alice.user_id, rsa_thumbprint=alice.rsa_thumbprint, encrypted_group_key=b"new key")
    await world.tell(
        alice,
        group_id,
        frames.GroupRekey,
        GroupRekeyed,
        {"encrypted_name": b"name", "encrypted_group_keys": [wrap]},
        new_key_epoch=2,
        key_commitment=b"c" * 32,
        name_hash=chain.field_hash(b"name"),
        previous_key=b"previous",
    )
    await world.post(alice, group_id)

    events = await verified_log(world.sql, group_id)

    assert [event.kind for event in events] == [
        Kind.GROUP_CREATED,
        Kind.MEMBER_JOINED,
        Kind.MEMBER_JOINED,
        Kind.THREAD_POSTED,
        Kind.REPLY_POSTED,
        Kind.ANNOTATION_POSTED,
        Kind.POST_DELETED,
        Kind.MEMBER_REMOVED,
        Kind.MEMBER_LEFT,
        Kind.GROUP_REKEYED,
        Kind.THREAD_POSTED,
    ]
    assert [event.key_epoch for event in events] == [1] * 10 + [2]


@pytest.mark.each_postgres
async def test_the_two_implementations_agree_on_any_event(migrated_database: str) -> None:
    dice = random.Random(4711)
    async with connected(migrated_database) as connection:
        for number in range(60):
            previous, content = dice.randbytes(32), dice.randbytes(32)
            group_id, object_id, actor_id = dice.randbytes(16), dice.randbytes(16), dice.randbytes(16)
            kind, key_epoch = dice.choice((*Kind, 255)), dice.choice((*EXTREMES, dice.getrandbits(31)))
            seq, created_at = dice.choice((1, 2**53 - 1, dice.getrandbits(53))), dice.getrandbits(53)

            theirs = await connection.fetchval(
                "SELECT event_hash($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                *(previous, group_id, seq, kind, object_id, actor_id, key_epoch, created_at, content),
            )

            ours = chain.event_hash(
                previous_hash=previous,
                group_id=group_id,
                seq=seq,
                kind=kind,
                object_id=object_id,
                actor_id=actor_id,
                key_epoch=key_epoch,
                created_at=created_at,
                content_hash=content,
            )
            assert theirs == ours, number


@pytest.mark.each_postgres
@pytest.mark.parametrize("us", [0, 1, 999_999, 1_700_000_000_123_456, 4_102_444_800_000_001])
async def test_times_keep_their_microseconds(migrated_database: str, us: int) -> None:
    async with connected(migrated_database) as connection:
        assert await connection.fetchval("SELECT to_us(from_us($1))", us) == us
