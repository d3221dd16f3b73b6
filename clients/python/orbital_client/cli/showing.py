"""How messages, and what else happens, look: in lines for people, or as JSON."""

from typing import Any

from rich.text import Text

from orbital_client import Erased, Group, GroupChange, Item, Message, Suspicious, Update
from orbital_client.cli.options import short
from orbital_client.cli.terminal import WRONG, Terminal, in_bytes, iso_time, local_time, paragraphs, printable
from orbital_client.crypto.contents import AnyAct, Edit, Pin, React, Unpin, Unreact

_INDENT = "    "


def show_message(terminal: Terminal, message: Message) -> None:
    """A message as it stands: a heading, and its text below."""
    terminal.say(_heading(message))
    if message.problem is not None:
        terminal.say(f"{_INDENT}can't be shown: {printable(str(message.problem))}", WRONG)
    elif message.is_deleted:
        terminal.say(f"{_INDENT}deleted" if message.kind != "file" else f"{_INDENT}deleted, or its time is over", "dim")
    for line in paragraphs(message.text) if message.text else ():
        terminal.say(f"{_INDENT}{line}")
    for emoji, users in message.reactions.items():
        names = ", ".join(sorted(message.group.name_of(user_id) for user_id in users))
        terminal.say(f"{_INDENT}{printable(emoji)} {printable(names)}")


def _heading(message: Message) -> Text:
    heading = Text(f"{local_time(message.created_at)}  ", style="dim")
    heading.append(printable(message.author), style="bold not dim")
    heading.append(f"  {short(message.id)}")
    if message.kind != "thread":
        heading.append(f" in {short(message.thread_id)}")
    if message.title:
        heading.append(f"  {printable(message.title)}", style="bold not dim")
    if message.file_name:
        heading.append(f"  {printable(message.file_name)}, {in_bytes(message.size_bytes)}", style="bold not dim")
    marks = [word for word, holds in (("edited", message.is_edited), ("pinned", message.is_pinned)) if holds]
    if marks:
        heading.append(f"  ({', '.join(marks)})")
    return heading


def show_item(terminal: Terminal, group: Group, item: Item) -> None:
    """One line, or more for a message, of what happens; or its JSON."""
    terminal.line(item_facts(group, item))
    match item:
        case Message():
            show_message(terminal, item)
        case Update():
            who = printable(group.name_of(item.author_id))
            terminal.say(f"{who} {_act_words(item.act)} {short(item.message_id)}", "dim")
        case Erased():
            by = "its time is over" if item.by is None else f"by {printable(group.name_of(item.by))}"
            terminal.say(f"{short(item.message_id)} was deleted: {by}", "dim")
        case GroupChange():
            terminal.say(printable(item.text), "dim")
        case Suspicious():
            terminal.say(printable(item.finding.text), WRONG)


def _act_words(act: AnyAct | None) -> str:
    match act:
        case None:
            return "did what can't be opened with"
        case Edit():
            return "edited"
        case React():
            return f"put {printable(act.emoji)} on"
        case Unreact():
            return f"took {printable(act.emoji)} off"
        case Pin():
            return "pinned"
        case Unpin():
            return "unpinned"


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def item_facts(group: Group, item: Item) -> dict[str, Any]:
    """What happened, as JSON has it: `event` says which kind of thing."""
    match item:
        case Message():
            return {"event": "message", **message_facts(item)}
        case Update():
            words = {name: said for name in ("text", "title", "emoji") if (said := getattr(item.act, name, None))}
            return {
                "event": "update",
                "seq": item.cursor.seq,
                "act": type(item.act).__name__.lower(),
                "message_id": item.message_id,
                "author": group.name_of(item.author_id),
                "author_id": item.author_id,
                **words,
            }
        case Erased():
            return {"event": "erased", "seq": item.cursor.seq, "message_id": item.message_id, "by": item.by}
        case GroupChange():
            return {"event": "change", "seq": item.cursor.seq, "text": item.text, "actor_id": item.actor_id}
        case Suspicious():
            flaw = {"flaw": item.finding.flaw, "text": item.finding.text}
            return {"event": "suspicious", "seq": item.cursor.seq, **flaw}


def message_facts(message: Message) -> dict[str, Any]:
    """A message, as JSON has it."""
    file = message.post.file
    return {
        "id": message.id,
        "thread_id": message.thread_id,
        "kind": message.kind,
        "seq": message.seq,
        "author": message.author,
        "author_id": message.author_id,
        "created_at": iso_time(message.created_at),
        "sent_at": iso_time(message.sent_at) if message.sent_at else None,
        "title": message.title or None,
        "text": message.text,
        "format": message.post.format,
        "file": {"name": file.name, "media_type": file.media_type, "size_bytes": file.size_bytes} if file else None,
        "is_edited": message.is_edited,
        "is_deleted": message.is_deleted,
        "is_pinned": message.is_pinned,
        "reactions": {emoji: sorted(users) for emoji, users in message.reactions.items()},
        "problem": None if message.problem is None else str(message.problem),
    }
