"""What is asked, and what is shown, above the window."""

from collections.abc import Iterable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Label, Static

from orbital_client.chat.rendering import DIM

CLOSE: Binding = Binding("escape", "close", "Close")


class Ask(ModalScreen[tuple[str, ...] | None]):
    """Some lines of text, of which the first must not be empty; None if they are not given after all."""

    BINDINGS: ClassVar[list[BindingType]] = [CLOSE]

    def __init__(self, title: str, *fields: str, given: str = "", hint: str = "") -> None:
        super().__init__()
        self._title = title
        self._fields = fields
        self._given = given
        self._hint = hint

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(Content(self._title), classes="title")
            for at, name in enumerate(self._fields):
                yield Input(value="" if at else self._given, placeholder=name, id=f"field-{at}")
            yield Static(Content.styled(self._hint or "Enter goes on, Esc goes back", DIM))

    @on(Input.Submitted)
    def _next(self, event: Input.Submitted) -> None:
        event.stop()
        inputs = list(self.query(Input))
        if event.input is not inputs[-1]:
            inputs[inputs.index(event.input) + 1].focus()
        elif inputs[0].value.strip():
            _ = self.dismiss(tuple(field.value for field in inputs))
        else:
            inputs[0].focus()

    def action_close(self) -> None:
        _ = self.dismiss(None)


class Tell(ModalScreen[None]):
    """Something to read, and to copy."""

    BINDINGS: ClassVar[list[BindingType]] = [CLOSE, Binding("c", "copy", "Copy")]

    def __init__(self, title: str, paragraphs: Iterable[Content], copied: str = "") -> None:
        super().__init__()
        self._title = title
        self._paragraphs = tuple(paragraphs)
        self._copied = copied

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(Content(self._title), classes="title")
            for paragraph in self._paragraphs:
                yield Static(paragraph, classes="paragraph")
            keys = "C copies it, Esc goes back" if self._copied else "Esc goes back"
            yield Static(Content.styled(keys, DIM))

    def action_copy(self) -> None:
        if self._copied:
            self.app.copy_to_clipboard(self._copied)
            self.notify("copied", markup=False)

    def action_close(self) -> None:
        _ = self.dismiss(None)
