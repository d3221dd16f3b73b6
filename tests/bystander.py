"""What must hold of a relay whatever one client sends it: nothing in it fails, and another client notices nothing.

async with bystander_on(relay, stage) as bystander:
    …
    await bystander.goes_on()
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from orbital_protocol.frames import ReplyPost
from tests.people import found_group
from tests.relays import RunningRelay
from tests.stage import Stage
from tests.talk import Talk, post_thread, reply, talking

ANSWER_LIMIT_S = 10  # for a durable post, where others keep processor and disk busy; what stands still takes longer
DEFECTS = frozenset(
    {"request.failed", "session.failed", "library.message", "log.unlisted", "append.failed", "not json"}
)


@dataclass
class Bystander:
    """A client with a group of their own, and the relay's log as far as it has been looked at."""

    relay: RunningRelay
    talk: Talk
    group_id: bytes
    thread_id: bytes
    looked_at: int = 0

    def reply(self) -> ReplyPost:
        """A reply to the bystander's own thread."""
        return reply(self.talk, self.group_id, self.thread_id)

    async def goes_on(self) -> None:
        """Post something, which is answered in time, and see that nothing in the relay has failed meanwhile."""
        async with asyncio.timeout(ANSWER_LIMIT_S):
            await self.talk.send(self.reply())
        self.check_log()

    def check_log(self) -> None:
        """Raise AssertionError where what was logged since the last look tells of a defect."""
        fresh, self.looked_at = self.relay.log[self.looked_at :], len(self.relay.log)
        defects = [line for line in fresh if line["event"] in DEFECTS or "traceback" in line]
        assert not defects, "\n".join(map(str, defects))
        assert self.relay.process.returncode is None, "the relay has ended"


@asynccontextmanager
async def bystander_on(relay: RunningRelay, stage: Stage) -> AsyncIterator[Bystander]:
    """Somebody who talks to this relay about something else."""
    [person] = await stage.people(1)
    group_id = await found_group(stage.sql, person)
    async with talking(relay.url, await stage.token(person)) as talk:
        thread_id, _ = await post_thread(talk, group_id)
        yield Bystander(relay, talk, group_id, thread_id, len(relay.log))
