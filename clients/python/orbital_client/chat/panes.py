"""The parts of the window: the list of groups and threads, the messages, and where one writes."""

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from textual import events
from textual.content import Content
from textual.message import Message as Told
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option

Row = tuple[str, Content]
"""An id, and what is shown for it. Ids that begin with `note` can't be chosen."""

NOTE: Final = "note"


class Rows(OptionList):
    """Rows by id. Only what has changed is drawn again, and what is highlighted stays so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)
        self._rows: list[Row] = []

    def show(self, rows: Sequence[Row]) -> None:
        """Show these rows, and no others."""
        if list(rows) == self._rows:
            return
        kept = [row_id for row_id, _ in self._rows]
        wanted = [row_id for row_id, _ in rows]
        if wanted[: len(kept)] == kept:
            for at, (before, now) in enumerate(zip(self._rows, rows, strict=False)):
                if before != now:
                    self.replace_option_prompt_at_index(at, now[1])
            self.add_options(_option(row) for row in rows[len(kept) :])
        else:
            chosen = self.chosen_id
            self.set_options(_option(row) for row in rows)
            self.choose(chosen)
        self._rows = list(rows)

    @property
    def chosen_id(self) -> str | None:
        """The id of what is highlighted."""
        option = self.highlighted_option
        return option.id if option else None

    def choose(self, row_id: str | None) -> None:
        """Highlight a row, if it is there."""
        at = next((at for at, option in enumerate(self.options) if option.id == row_id), None)
        if self.highlighted != at:
            self.highlighted = at


def _option(row: Row) -> Option:
    row_id, content = row
    return Option(content, id=row_id, disabled=row_id.startswith(NOTE))


class Messages(Rows):
    """The messages of a thread, which stay at their end unless one has scrolled up."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._is_at_end = True

    def show(self, rows: Sequence[Row]) -> None:
        super().show(rows)
        self._stay()

    def on_resize(self) -> None:
        self._stay()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._is_at_end = new_value >= self.max_scroll_y - 1

    def _stay(self) -> None:
        if self._is_at_end:
            self.call_after_refresh(self.scroll_end, animate=False)

    def on_focus(self) -> None:
        if self.highlighted is None:
            self.action_last()

    def on_blur(self) -> None:
        self.highlighted = None


class Composer(TextArea):
    """Where one writes. Enter sends; Shift+Enter or Ctrl+J begins a new line."""

    BINDINGS: ClassVar = []

    class Sent(Told):
        """What was written is to be sent."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, **options: Any) -> None:
        super().__init__(compact=True, show_line_numbers=False, highlight_cursor_line=False, **options)

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.post_message(self.Sent(self.text))
        elif event.key in ("ctrl+j", "shift+enter"):
            event.stop()
            event.prevent_default()
            self.insert("\n")
        else:
            await super()._on_key(event)
