"""Who is in a group, with what proves that it is they; and who asks to be let in."""

from collections.abc import Sequence
from typing import ClassVar, Final

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Label, OptionList, Static

from orbital_client.chat.colours import colour_of
from orbital_client.chat.dialogs import CLOSE
from orbital_client.chat.panes import Row, Rows
from orbital_client.chat.rendering import DIM, FACT, WRONG, words
from orbital_client.cli.terminal import printable
from orbital_client.client import Client
from orbital_client.errors import OrbitalError
from orbital_client.group import Group, Knock, Member
from orbital_protocol.codes import Role

_ROLES: Final = {Role.OWNER: "owner", Role.ADMIN: "admin", Role.MEMBER: "member"}


def fingerprint_content(fingerprint: str) -> Content:
    """A fingerprint in two lines, to be read aloud."""
    groups = fingerprint.split()
    half = len(groups) // 2
    return Content.styled(f"{' '.join(groups[:half])}\n{' '.join(groups[half:])}", f"bold {FACT}")


class _List(ModalScreen[None]):
    """People in rows, and beneath them more about the one that is highlighted."""

    heading = ""
    keys = ""

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(Content(self.heading), classes="title")
            yield Rows(id="people")
            yield Static(id="more")
            yield Static(Content.styled(self.keys, DIM))

    def on_mount(self) -> None:
        self.draw()
        rows = self.query_one(Rows)
        rows.focus()
        rows.action_first()

    def draw(self) -> None:
        self.query_one(Rows).show(self.rows())
        self.query_one("#more", Static).update(self.more(self.chosen))

    @property
    def chosen(self) -> bytes | None:
        chosen = self.query_one(Rows).chosen_id
        return bytes.fromhex(chosen) if chosen else None

    @on(OptionList.OptionHighlighted)
    def _look(self) -> None:
        self.query_one("#more", Static).update(self.more(self.chosen))

    def rows(self) -> list[Row]:
        raise NotImplementedError

    def more(self, user_id: bytes | None) -> Content:
        raise NotImplementedError

    def action_close(self) -> None:
        _ = self.dismiss(None)


class Members(_List):
    """Members with their roles and fingerprints."""

    BINDINGS: ClassVar[list[BindingType]] = [CLOSE, Binding("v", "verify", "Verified")]
    heading = "Members"
    keys = "V: I have compared this fingerprint with theirs, and it is the same · Esc goes back"

    def __init__(self, client: Client, group: Group, members: Sequence[Member]) -> None:
        super().__init__()
        self._client = client
        self._group = group
        self._members = {member.user_id: member for member in members}

    def rows(self) -> list[Row]:
        return [(member.user_id.hex(), self._row(member)) for member in self._members.values()]

    def _row(self, member: Member) -> Content:
        kind = ", bot" if member.is_bot else ""
        name = (printable(member.name), f"bold {colour_of(member.user_id)}")
        return Content.assemble(name, (f"  {_ROLES[member.role]}{kind}  ", DIM), self._trust(member.user_id))

    def _trust(self, user_id: bytes) -> Content:
        if user_id == self._client.user_id:
            return Content.styled("you", DIM)
        try:
            person = self._group.person(user_id)
        except KeyError:
            return Content.styled("no longer a member", DIM)
        if person.is_changed:
            return Content.styled("✗ other keys than before", WRONG)
        return Content.styled(
            "✓ verified" if person.is_verified else "not compared", FACT if person.is_verified else DIM
        )

    def more(self, user_id: bytes | None) -> Content:
        if user_id is None or not self._group.has_member(user_id):
            return Content("")
        return fingerprint_content(self._group.person(user_id).fingerprint)

    def action_verify(self) -> None:
        if self.chosen is not None and self.chosen != self._client.user_id:
            try:
                self._client.mark_verified(self.chosen)
            except OrbitalError as error:
                self.notify(words(error), severity="error", markup=False)
            self.draw()


class Knocks(_List):
    """Who asks to be admitted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        CLOSE,
        Binding("a", "answer(True)", "Admit"),
        Binding("d", "answer(False)", "Deny"),
    ]
    heading = "Who asks to be admitted"
    keys = "Compare the fingerprint with them first · A admits, D denies · Esc goes back"

    def __init__(self, knocks: Sequence[Knock]) -> None:
        super().__init__()
        self._knocks = {knock.user_id: knock for knock in knocks}

    def rows(self) -> list[Row]:
        return [
            (knock.user_id.hex(), Content.assemble((printable(knock.name), f"bold {colour_of(knock.user_id)}")))
            for knock in self._knocks.values()
        ]

    def more(self, user_id: bytes | None) -> Content:
        knock = self._knocks.get(user_id or b"")
        return fingerprint_content(knock.fingerprint) if knock else Content.styled("nobody knocks", DIM)

    def action_answer(self, is_welcome: bool) -> None:
        knock = self._knocks.get(self.chosen or b"")
        if knock is not None:
            self.run_worker(self._answer(knock, is_welcome), group="answers")

    async def _answer(self, knock: Knock, is_welcome: bool) -> None:
        try:
            await (knock.admit() if is_welcome else knock.deny())
        except (OrbitalError, TimeoutError) as error:
            self.notify(words(error), severity="error", markup=False)
            return
        self._knocks.pop(knock.user_id, None)
        self.draw()
