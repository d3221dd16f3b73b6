"""Bots: members of groups that are programs.

bot         Bot: handlers, cursors, start and stop       routing     which handler an item is for
secret      the one secret that a bot is started with    making      a bot's account and token, and their end
"""

from orbital_client.bots.bot import Bot
from orbital_client.bots.making import BotMade, create_bot, revoke_bot
from orbital_client.bots.secret import BotSecret

__all__ = ["Bot", "BotMade", "BotSecret", "create_bot", "revoke_bot"]
