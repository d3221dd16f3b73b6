"""Bots: members of groups that are programs.

bot         Bot: handlers, start and stop                routing     which handler an item is for
following   its groups, from where it stopped            cursors     where that is
calling     handlers at work, and what they raise        answering   what stands once, though done again
timers      what is done by the clock                    making      a bot's account and token, and their end
secret      the one secret that a bot is started with
"""

from orbital_client.bots.bot import Bot
from orbital_client.bots.making import BotMade, add_bot, create_bot, renew_bot, revoke_bot, withdraw_bot
from orbital_client.bots.secret import BotSecret

__all__ = ["Bot", "BotMade", "BotSecret", "add_bot", "create_bot", "renew_bot", "revoke_bot", "withdraw_bot"]
