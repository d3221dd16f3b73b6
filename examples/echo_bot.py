"""A bot that says what it is told: `!echo anybody there` in any thread of its groups.

orbital bot create echo --group "Book club"    # prints the secret
ORBITAL_URL=wss://relay.example.org ORBITAL_BOT_SECRET=orbital-bot:… python echo_bot.py
"""

import os

from orbital_client import Bot, Message

bot = Bot(os.environ["ORBITAL_URL"], token=os.environ["ORBITAL_BOT_SECRET"])


@bot.command("echo")
async def echo(message: Message, *words: str) -> None:
    await message.reply(" ".join(words) or "…")


if __name__ == "__main__":
    bot.run()
