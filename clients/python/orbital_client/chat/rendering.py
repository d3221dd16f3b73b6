"""How things look. Whatever others wrote is plain text: no markup, and nothing that steers a terminal."""

from datetime import datetime
from typing import Final

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from orbital_client.chat.colours import colour_of
from orbital_client.chat.threads import Entry, Note
from orbital_client.cli.terminal import in_bytes, local_time, paragraphs, printable
from orbital_client.errors import RequestFailed
from orbital_client.messages import Message

WRONG: Final = "bold #f7768e"
DIM: Final = "#7f88a8"
FACT: Final = "#a9b1d6"
MARK: Final = "#e0af68"
UNREAD: Final = "bold #e0af68"
_CONTINUES_US: Final = 5 * 60 * 1_000_000
_MOST: Final = 99


def words(error: BaseException) -> str:
    """What went wrong, for people."""
    text = str(error) or type(error).__name__
    return printable(text.removeprefix(f"{error.code}: ") if isinstance(error, RequestFailed) else text)


def safe_lines(text: str) -> str:
    """A text of others' with its line ends, and nothing else that is not printable."""
    return "\n".join(paragraphs(text))


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def entry_content(entry: Entry, before: Entry | None, today: str) -> Content:
    """A message or a note; `before` is what stands above it."""
    if isinstance(entry, Note):
        gap = "" if before is None or isinstance(before, Note) else "\n"
        mark, style = ("✗", WRONG) if entry.is_wrong else ("·", DIM)
        return Content.assemble(gap, (f"{mark} {printable(entry.text)}", style))
    if _continues(entry, before):
        return _said(entry)
    gap = "" if before is None else "\n"
    return Content.assemble(gap, _heading(entry, today), "\n", _said(entry))


def _continues(message: Message, before: Entry | None) -> bool:
    """Whether a message needs no heading of its own."""
    return (
        isinstance(before, Message)
        and not _marks(message)
        and message.kind != "thread"
        and before.author_id == message.author_id
        and 0 <= message.created_at - before.created_at < _CONTINUES_US
    )


def _heading(message: Message, today: str) -> Content:
    time = local_time(message.created_at).removeprefix(f"{today} ")
    marks = "".join(f"  {mark}" for mark in _marks(message))
    return Content.assemble(
        (printable(message.author), f"bold {colour_of(message.author_id)}"), (f"  {time}", DIM), (marks, MARK)
    )


def _marks(message: Message) -> list[str]:
    marks = (("edited", message.is_edited), ("pinned", message.is_pinned))
    return [word for word, holds in marks if holds]


def _said(message: Message) -> Content:
    lines: list[Content] = []
    if message.problem is not None:
        lines.append(Content.styled(f"✗ can't be shown: {printable(str(message.problem))}", WRONG))
    elif message.is_deleted:
        lines.append(Content.styled("deleted" if message.kind != "file" else "deleted, or its time is over", DIM))
    if message.title:
        lines.append(Content.styled(printable(message.title), "bold"))
    if message.post.file is not None:
        size = in_bytes(message.size_bytes)
        lines.append(Content.assemble(("▤ ", FACT), printable(message.file_name), (f"  {size}", DIM)))
    if message.text:
        lines.append(Content(safe_lines(message.text)))
    if message.reactions:
        lines.append(_reactions(message))
    return Content("\n").join(lines or [Content("")])


def _reactions(message: Message) -> Content:
    shown = [f"{printable(emoji)} {len(users)}" for emoji, users in message.reactions.items()]
    return Content.styled("   ".join(shown), FACT)


def today() -> str:
    """The day, as times begin."""
    return datetime.now().astimezone().strftime("%Y-%m-%d")


# ── groups and threads ──────────────────────────────────────────────────────────────────────────────────────────────


def row(text: str, unread: int, width: int, *, style: str = "") -> Content:
    """A name, cut to fit, with a number at the right where something is unread."""
    count = "" if not unread else str(unread) if unread <= _MOST else f"{_MOST}+"
    name = printable(text)
    room = width - (len(count) + 1 if count else 0)
    if cell_len(name) > room:
        name = f"{set_cell_size(name, room - 1)}…"
    return Content.assemble(
        (set_cell_size(name, room), f"bold {style}" if unread else style), (f" {count}" if count else "", UNREAD)
    )


def people(names: list[str], verb: tuple[str, str]) -> str:
    """`ann`, `ann and bob`, or `ann, bob and 3 more`, with the verb for one or for many."""
    shown = [printable(name) for name in sorted(names)]
    if len(shown) > 3:  # noqa: PLR2004  more than a line holds
        shown = [*shown[:2], f"{len(shown) - 2} more"]
    listed = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    return f"{listed} {verb[len(names) > 1]}".rstrip() if names else ""
