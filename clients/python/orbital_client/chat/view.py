"""From what is known to what is drawn: rows, and the lines around them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from textual.content import Content
from textual.widgets import Static

from orbital_client.chat.panes import NOTE, Messages, Row, Rows
from orbital_client.chat.rendering import DIM, MARK, WRONG, entry_content, people, row, today
from orbital_client.chat.rooms import Room
from orbital_client.chat.threads import Entry
from orbital_client.cli.terminal import printable
from orbital_client.messages import Message

if TYPE_CHECKING:
    from orbital_client.chat.app import ChatApp

ROW_WIDTH: Final = 28
_GOOD: Final = "#9ece6a"
_NAME: Final = "bold #c0caf5"


def draw(app: "ChatApp", now_s: float) -> None:
    """Show everything as it is now; what has not changed is not drawn again."""
    groups = app.screen_stack[0].query_one("#groups", Rows)
    groups.show(group_rows(app.rooms, app.room))
    if not groups.has_focus and app.room is not None:
        groups.choose(place_of(app.room))
    screen = app.screen_stack[0]
    screen.query_one("#where", Static).update(where(app, now_s))
    screen.query_one("#connection", Static).update(connection(app.is_connected))
    screen.query_one("#messages", Messages).show(message_rows(app.room))
    screen.query_one("#status", Static).update(status(app, now_s))
    banner = screen.query_one("#banner", Static)
    banner.update(Content(trouble(app.room)))
    banner.display = bool(trouble(app.room))


def in_order(rooms: Mapping[bytes, Room]) -> list[Room]:
    """Groups as they stand in the list."""
    return sorted(rooms.values(), key=lambda room: (room.name.casefold(), room.group.id))


def place_of(room: Room) -> str:
    """The row of what is looked at."""
    return f"{room.group.id.hex()}/{room.open.id.hex()}" if room.open else room.group.id.hex()


def group_rows(rooms: Mapping[bytes, Room], chosen: Room | None) -> list[Row]:
    """Groups, and beneath the chosen one its threads."""
    rows: list[Row] = []
    for room in in_order(rooms):
        style = WRONG if room.broken else "#c0caf5"
        mark = "▾" if room is chosen else "▸"
        rows.append((room.group.id.hex(), row(f"{mark} {room.name}", room.tally.total, ROW_WIDTH, style=style)))
        if room is chosen:
            rows += [_thread_row(room, thread_id) for thread_id in room.thread_ids]
    return rows


def _thread_row(room: Room, thread_id: bytes) -> Row:
    unread = room.tally.unread.get(thread_id, 0)
    is_open = room.open is not None and room.open.id == thread_id
    style = "#c0caf5" if is_open else "#a9b1d6"
    title = row(f"  {title_of(room.threads[thread_id])}", unread, ROW_WIDTH, style=style)
    return f"{room.group.id.hex()}/{thread_id.hex()}", title


def title_of(thread: Message) -> str:
    """What to call a thread."""
    if thread.is_deleted:
        return "(deleted)"
    return thread.title or "(can't be shown)"


def message_rows(room: Room | None) -> list[Row]:
    """The open thread; without one, what happened in the group."""
    if room is None:
        return [(NOTE, Content.styled("You are in no group yet: `orbital join`, or `orbital create`.", DIM))]
    entries: list[Entry] = room.open.conversation.entries(room.notes) if room.open else [*room.notes]
    day = today()
    before = [None, *entries]
    rows = [(_entry_id(entry), entry_content(entry, above, day)) for above, entry in zip(before, entries, strict=False)]
    if room.open is None:
        rows.append((f"{NOTE} none", Content.styled("\nThere is no thread yet: Ctrl+N opens one.", DIM)))
    return rows


def _entry_id(entry: Entry) -> str:
    return entry.id.hex() if isinstance(entry, Message) else f"{NOTE} {entry.seq} {entry.text}"


# ── the lines around ────────────────────────────────────────────────────────────────────────────────────────────────


def where(app: "ChatApp", now_s: float) -> Content:
    """The group and thread that are looked at, and who is here."""
    room = app.room
    if room is None:
        return Content.styled("Orbital", _NAME)
    here = [room.group.name_of(user_id) for user_id in room.nearby.here(now_s) if room.group.has_member(user_id)]
    title = room.threads.get(room.open.id) if room.open else None
    parts: list[tuple[str, str]] = [(printable(room.name), _NAME)]
    if title is not None:
        parts += [("  /  ", DIM), (printable(title_of(title)), _NAME)]
    members = f"{room.member_count} member{'s' * (room.member_count != 1)}" if room.member_count else ""
    parts.append((f"   {members}", DIM))
    parts.append((f"   {people(here, ('is here', 'are here'))}" if here else "", _GOOD))
    return Content.assemble(*parts)


def connection(is_connected: bool) -> Content:
    """How the connection is."""
    return Content.styled("● connected", _GOOD) if is_connected else Content.styled("○ reconnecting", MARK)


def status(app: "ChatApp", now_s: float) -> Content:
    """The line above where one writes: who types, what is on its way."""
    parts: list[tuple[str, str]] = []
    if app.editing is not None:
        parts.append(("editing: Enter keeps it, Esc leaves the message as it was", MARK))
    if app.room is not None:
        parts += _typing(app.room, now_s)
    parts += [(what, MARK) for what in app.transfers.values()]
    if app.unsent:
        parts.append(("sending…", DIM))
    spaced = [("   ", "")] * (2 * len(parts) - 1)
    spaced[::2] = parts
    return Content.assemble(*spaced)


def _typing(room: Room, now_s: float) -> list[tuple[str, str]]:
    def said(thread_id: bytes | None, what: tuple[str, str]) -> list[tuple[str, str]]:
        names = [room.group.name_of(user_id) for user_id in room.nearby.typing(thread_id, now_s)]
        return [(people(names, what), DIM)] if names else []

    here = said(room.open.id, ("is typing…", "are typing…")) if room.open else []
    return here + said(None, ("writes a new thread…", "write new threads…"))


def trouble(room: Room | None) -> str:
    """Why the group, or its thread, can't be shown as it should be."""
    if room is None:
        return ""
    if room.broken:
        return printable(f"{room.broken}. This group is no longer followed: what is shown is what was verified before.")
    return printable(room.open.problem) if room.open else ""
