"""What each key does. An act is a coroutine of the window's; what goes wrong in it is shown to people."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from textual.content import Content

from orbital_client.chat.dialogs import Ask, Tell
from orbital_client.chat.people import Knocks, Members, fingerprint_content
from orbital_client.chat.rendering import DIM, FACT
from orbital_client.chat.view import in_order
from orbital_client.cli.terminal import printable
from orbital_client.messages import Message

if TYPE_CHECKING:
    from orbital_client.chat.app import ChatApp

_INVITE_S: Final = 7 * 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class Act:
    """A key, what the footer calls it, what the help says about it, and what is done."""

    key: str
    label: str
    help: str
    work: "Callable[[ChatApp], Coroutine[Any, Any, None]]"


async def new_thread(app: "ChatApp") -> None:
    room = app.room
    answer = await app.ask(Ask("New thread", "Title", "First message (may be empty)")) if room else None
    if room is not None and answer is not None:
        posted = await room.group.post(answer[0].strip(), answer[1].strip())
        app.choose(room, posted.id)


async def edit(app: "ChatApp") -> None:
    message = app.target(_is_own)
    if message is None:
        app.warn("there is no message of yours here to edit")
    else:
        app.edit(message)


def _is_own(message: Message) -> bool:
    return message.is_mine and message.kind != "file" and not message.is_deleted and message.problem is None


async def react(app: "ChatApp") -> None:
    message = app.target(lambda message: not message.is_deleted)
    if message is None:
        return
    hint = "👍 ❤️ 😂 🎉 😮 😢 or any other, or a word; one that is there from you already is taken back"
    answer = await app.ask(Ask("React", "Emoji", given="👍", hint=hint))
    if answer is not None:
        emoji = answer[0].strip()
        is_there = message.group.user_id in message.reactions.get(emoji, frozenset())
        await (message.unreact(emoji) if is_there else message.react(emoji))


async def share(app: "ChatApp") -> None:
    thread = app.open_thread
    answer = await app.ask(Ask("Share a file, for seven days", "Path", "Caption (may be empty)")) if thread else None
    if thread is not None and answer is not None:
        path = _path(answer[0])
        with app.transfer("sharing", path.name) as advance:
            await thread.group.share(thread.id, path, caption=answer[1].strip(), on_progress=advance)


async def download(app: "ChatApp") -> None:
    message = app.target(lambda message: message.post.file is not None)
    if message is None:
        app.warn("there is no file here to download")
        return
    folder = await asyncio.to_thread(_downloads)
    answer = await app.ask(Ask("Download", "Path", given=str(folder / message.safe_file_name)))
    if answer is None:
        return
    path = _path(answer[0])
    if await asyncio.to_thread(path.is_file):
        app.warn(f"{printable(str(path))} is there already: choose another name")
        return
    with app.transfer("downloading", message.file_name) as advance:
        done = await message.download(path, on_progress=advance)
    app.notify(printable(f"downloaded {done}"), markup=False)


def _path(text: str) -> Path:
    return Path(text.strip()).expanduser()


def _downloads() -> Path:
    folder = Path.home() / "Downloads"
    return folder if folder.is_dir() else Path.cwd()


async def invite(app: "ChatApp") -> None:
    if app.room is None:
        return
    link = await app.room.group.invite(expires_in_s=_INVITE_S)
    about = "Whoever has this link can join and read, for a week. Give it to them where nobody else sees it."
    paragraphs = [Content.styled(link.text, FACT), Content.styled(about, DIM)]
    await app.ask(Tell(f"Invite to {printable(app.room.name)}", paragraphs, copied=link.text))


async def members(app: "ChatApp") -> None:
    if app.room is not None:
        group = app.room.group
        await app.ask(Members(app.client, group, await group.members()))


async def knocks(app: "ChatApp") -> None:
    if app.room is not None:
        await app.ask(Knocks(await app.room.group.knocks()))


async def next_unread(app: "ChatApp") -> None:
    """Go to the next thread with something unread: in this group, then in those after it."""
    rooms = in_order(app.rooms)
    at = rooms.index(app.room) if app.room in rooms else 0
    for room in [*rooms[at:], *rooms[:at]]:
        found = [thread_id for thread_id in room.thread_ids if room.tally.unread.get(thread_id)]
        found += [thread_id for thread_id in room.tally.unread if thread_id not in found]
        if found:
            app.choose(room, found[0])
            return
    app.notify("everything is read", markup=False)


async def show_help(app: "ChatApp") -> None:
    lines = [f"{_key_name(act.key):<8}{act.help}" for act in ACTS.values()]
    more = [
        "Enter   sends; Shift+Enter or Ctrl+J begins a new line",
        "Tab     goes from pane to pane; arrows choose a message, or a thread, which Enter opens",
        "Esc     goes back to where one writes",
        "Ctrl+Q  ends it",
    ]
    own = "Your own fingerprint, for others to compare:"
    paragraphs = [Content("\n".join([*lines, *more])), Content.styled(own, DIM)]
    await app.ask(Tell("Help", [*paragraphs, fingerprint_content(app.client.fingerprint)]))


def _key_name(key: str) -> str:
    return key.replace("ctrl+", "Ctrl+").upper() if key.startswith("f") else f"Ctrl+{key[-1].upper()}"


ACTS: "Final[dict[str, Act]]" = {
    "new_thread": Act("ctrl+n", "Thread", "opens a new thread", new_thread),
    "edit": Act("ctrl+l", "Edit", "edits the message of yours that is chosen, or the last one", edit),
    "react": Act("ctrl+r", "React", "reacts to the message that is chosen, or to the last one", react),
    "share": Act("ctrl+s", "Share", "shares a file in this thread", share),
    "download": Act("ctrl+g", "Get file", "downloads the file that is chosen, or the last one", download),
    "next_unread": Act("ctrl+t", "Unread", "goes to the next thread with unread messages", next_unread),
    "help": Act("f1", "Help", "shows this, and your fingerprint", show_help),
    "members": Act("f2", "Members", "shows who is in the group, and verifies them", members),
    "knocks": Act("f3", "Knocks", "shows who asks to be admitted", knocks),
    "invite": Act("f4", "Invite", "makes an invite link", invite),
}
