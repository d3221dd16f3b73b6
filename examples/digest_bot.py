"""A bot that tells each morning what was said the day before: one thread for each of its groups.

orbital bot create digest --group "Book club"    # prints the secret
ORBITAL_URL=wss://relay.example.org ORBITAL_BOT_SECRET=orbital-bot:… python digest_bot.py

It keeps nothing: what a digest tells is in the group's history, and a digest has an id that is made of its group and
its day, so that it stands once, however often the bot is started.
"""

import os
import time
from collections import Counter
from datetime import UTC, datetime

from orbital_client import Bot, Group, Message

SECONDS = float(os.environ.get("DIGEST_SECONDS", "86400"))  # a day, from midnight UTC on
DELAY_S = 1.0  # the relay's clock may be a little behind
THREADS = 10
PAGE = 200

bot = Bot(os.environ["ORBITAL_URL"], token=os.environ["ORBITAL_BOT_SECRET"])


@bot.every(SECONDS, offset_s=DELAY_S)
async def digest(group: Group) -> None:
    """Tell what was said in the last day that is over."""
    ends_at = (time.time() - DELAY_S) // SECONDS * SECONDS
    said = await said_between(group, ends_at - SECONDS, ends_at)
    if said:
        day = datetime.fromtimestamp(ends_at - SECONDS, UTC)
        await group.post(f"Digest of {day:%A, %d %B}", told(said), id=bot.id_for("digest", group.id, str(ends_at)))


async def said_between(group: Group, begins_at: float, ends_at: float) -> list[Message]:
    """What others have posted in this time by the relay's clock, oldest first."""
    await group.live()
    page = await group.history(limit=PAGE)
    found = page
    while page and page[0].created_at >= begins_at * 1e6:
        page = await group.history(limit=PAGE, before=page[0].cursor)
        found = page + found
    return [one for one in found if begins_at * 1e6 <= one.created_at < ends_at * 1e6 and not one.is_mine]


def told(said: list[Message]) -> str:
    """How much, by whom, and where."""
    authors = Counter(message.author for message in said)
    threads = Counter(message.thread_id for message in said)
    titles = {message.thread_id: message.title for message in said if message.title}
    lines = [f"{len(said)} messages in {len(threads)} threads."]
    lines += [f"{name}: {number}" for name, number in authors.most_common()]
    lines += [f"«{titles.get(id, 'an older thread')}»: {number}" for id, number in threads.most_common(THREADS)]
    return "\n".join(lines)


if __name__ == "__main__":
    bot.run()
