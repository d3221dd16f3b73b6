"""Messages as they stand: whose edits count, who pins, what comes last, and what is left after a deletion."""

import pytest
from msgspec.structs import replace

from orbital_client.crypto.contents import MARKDOWN, Edit, Pin, React, Unpin, Unreact
from orbital_client.errors import MissingKey
from orbital_client.identity import Identity
from orbital_client.trust.board import Board, Post, post_of, sealed_post
from orbital_client.trust.opening import Opened, open_event
from orbital_protocol.codes import Kind, Role
from orbital_protocol.frames import Event
from tests.unit.trusting import ANN, BOB, CARA, DAN, EVE, GROUP, T0, Reader, Story, company, new_id


class Room:
    """A group in which Cara has opened a thread, and what its board has come to."""

    def __init__(self) -> None:
        self.story = company()
        self.thread = self.story.thread(CARA, "a title", "a text")

    def reader(self) -> Reader:
        reader = Reader(self.story.keys).take_all(self.story.events)
        assert reader.findings == []
        return reader

    def post(self, event: Event | None = None) -> Post:
        """The thread, or another message, as it stands."""
        return self.reader().post(event or self.thread)


@pytest.fixture
def room() -> Room:
    return Room()


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_has_what_its_event_and_its_author_said(room: Room) -> None:
    reply, file = room.story.reply(DAN, room.thread, "yes"), room.story.file(BOB, room.thread)
    thread = room.post()
    assert thread == Post(
        group_id=GROUP,
        id=room.thread.object_id,
        thread_id=room.thread.object_id,
        seq=7,
        hash=room.thread.hash,
        kind=Kind.THREAD_POSTED,
        author_id=CARA.user_id,
        created_at=T0 + 6_000_000,
        sent_at=T0 + 6,
        title="a title",
        text="a text",
    )
    answer = room.post(reply)
    assert (answer.thread_id, answer.title, answer.text, answer.kind) == (
        room.thread.object_id,
        "",
        "yes",
        Kind.REPLY_POSTED,
    )
    shared = room.post(file)
    assert shared.file is not None
    assert (shared.file.name, shared.text, shared.format, shared.file_iv, shared.sent_at) == (
        "a file",
        "a caption",
        "plain",
        bytes(12),
        T0 + 8,
    )
    assert (answer.file, answer.file_iv) == (None, b"")
    assert [post.id for post in room.reader().board] == [room.thread.object_id, reply.object_id, file.object_id]


def test_what_can_not_be_opened_is_there_all_the_same_and_heals() -> None:
    room = Room()
    room.story.annotate(CARA, room.thread, Edit, text="edited")
    log, _ = room.story.log()
    known = log.index.by_seq(room.thread.seq)
    assert known is not None
    board = Board(log.role_at)
    board.put(sealed_post(room.thread, known, MissingKey(1)))
    found = board.get(room.thread.object_id)
    assert found is not None
    assert isinstance(found.problem, MissingKey)
    assert (found.title, found.text, found.author_id, found.seq) == ("", "", CARA.user_id, room.thread.seq)
    reader = room.reader()
    opened = [open_event(log, reader.keyring, event) for event in room.story.events[6:8]]
    board.annotate(opened[1])
    board.put(post_of(opened[0]))
    assert board.get(room.thread.object_id) == reader.post(room.thread)
    assert reader.post(room.thread).text == "edited"
    assert [post.id for post in board] == [room.thread.object_id], "in its place"
    assert board.get(new_id("?")) is None


# ── edits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_last_edit_by_its_author_wins(room: Room) -> None:
    room.story.annotate(CARA, room.thread, Edit, text="first")
    seq = room.story.annotate(CARA, room.thread, Edit, text="**second**", format=MARKDOWN).seq
    post = room.post()
    assert (post.title, post.text, post.format, post.edited_at) == ("a title", "**second**", MARKDOWN, seq)
    seq = room.story.annotate(CARA, room.thread, Edit, text="third", title="another").seq
    post = room.post()
    assert (post.title, post.text, post.format, post.edited_at) == ("another", "third", "plain", seq)
    room.story.annotate(CARA, room.thread, Edit, text="fourth")
    assert room.post().title == "another", "without a title it stays"


@pytest.mark.parametrize("who", [ANN, BOB, DAN])
def test_nobody_edits_what_another_has_written(room: Room, who: Identity) -> None:
    room.story.annotate(who, room.thread, Edit, text="forged", title="forged")
    post = room.post()
    assert (post.title, post.text, post.edited_at) == ("a title", "a text", 0)


def test_a_title_is_a_threads_alone(room: Room) -> None:
    reply, file = room.story.reply(DAN, room.thread), room.story.file(DAN, room.thread)
    room.story.annotate(DAN, reply, Edit, text="other words", title="a title")
    room.story.annotate(DAN, file, Edit, text="another caption", title="a title")
    assert (room.post(reply).title, room.post(reply).text) == ("", "other words")
    assert (room.post(file).title, room.post(file).text) == ("", "another caption")
    shared = room.post(file).file
    assert shared is not None
    assert shared.caption == "a caption", "what was sealed stays as it is"


def test_an_edit_that_is_deleted_leaves_the_one_before(room: Room) -> None:
    story = room.story
    first = story.annotate(CARA, room.thread, Edit, text="first", title="first")
    second = story.annotate(CARA, room.thread, Edit, text="second", title="second")
    reader = room.reader()
    post = reader.board.erase(second.object_id, story.delete(CARA, second).seq)
    assert post is not None
    assert post == reader.post(room.thread)
    assert (post.text, post.title, post.edited_at) == ("first", "first", first.seq)
    post = reader.board.erase(first.object_id, story.delete(CARA, first).seq)
    assert post is not None
    assert (post.text, post.title, post.edited_at) == ("a text", "a title", 0)
    assert reader.board.erase(first.object_id, story.head.seq) is None, "there is nothing left of it"


# ── reactions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_member_has_each_emoji_once_or_not(room: Room) -> None:
    story = room.story
    for who, act, emoji in (
        (DAN, React, "👍"),
        (DAN, React, "👍"),
        (ANN, React, "👍"),
        (DAN, React, "🎉"),
        (CARA, React, "🎉"),
        (CARA, Unreact, "👍"),
    ):
        story.annotate(who, room.thread, act, emoji=emoji)
    assert dict(room.post().reactions) == {
        "👍": frozenset({DAN.user_id, ANN.user_id}),
        "🎉": frozenset({DAN.user_id, CARA.user_id}),
    }
    story.annotate(DAN, room.thread, Unreact, emoji="👍")
    story.annotate(DAN, room.thread, Unreact, emoji="👍")
    assert room.post().reactions["👍"] == {ANN.user_id}
    story.annotate(ANN, room.thread, Unreact, emoji="👍")
    assert set(room.post().reactions) == {"🎉"}, "what nobody has is not there"
    story.annotate(ANN, room.thread, React, emoji="👍")
    assert room.post().reactions["👍"] == {ANN.user_id}


def test_reactions_that_were_handed_out_stay_as_they_were(room: Room) -> None:
    room.story.annotate(DAN, room.thread, React, emoji="👍")
    reader = room.reader()
    before = reader.post(room.thread).reactions
    reader.take(room.story.annotate(ANN, room.thread, React, emoji="👍"))
    assert before == {"👍": frozenset({DAN.user_id})}
    assert reader.post(room.thread).reactions["👍"] == {DAN.user_id, ANN.user_id}
    with pytest.raises(TypeError):
        before["👍"] = frozenset()  # type: ignore[index]


# ── pins ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_pins_is_an_admin_at_that_time(room: Room) -> None:
    story = room.story
    reader = room.reader()
    pinned = []

    def go_on(event: Event) -> None:
        reader.take(event)
        pinned.append(reader.post(room.thread).is_pinned)

    go_on(story.annotate(DAN, room.thread, Pin))
    go_on(story.annotate(CARA, room.thread, Pin))
    go_on(story.annotate(BOB, room.thread, Pin))
    go_on(story.annotate(DAN, room.thread, Unpin))
    go_on(story.annotate(ANN, room.thread, Unpin))
    go_on(story.role(ANN, DAN, Role.ADMIN))
    go_on(story.annotate(DAN, room.thread, Pin))
    go_on(story.role(ANN, DAN, Role.MEMBER))
    go_on(story.annotate(DAN, room.thread, Unpin))
    go_on(story.annotate(BOB, room.thread, Unpin))
    assert pinned == [False, False, True, True, False, False, True, True, True, False]
    assert room.post().is_pinned is False


def test_a_pin_by_whoever_became_an_admin_later_does_not_count(room: Room) -> None:
    room.story.annotate(DAN, room.thread, Pin)
    room.story.role(ANN, DAN, Role.ADMIN)
    assert not room.post().is_pinned
    room.story.annotate(BOB, room.thread, Pin)
    room.story.remove(ANN, BOB)
    assert room.post().is_pinned, "who has left was an admin then"


def test_whoever_joins_with_the_same_id_pins_by_the_role_of_then(room: Room) -> None:
    story = room.story
    story.remove(ANN, BOB)
    story.rekey(ANN)
    story.join(BOB, story.invite(ANN))
    story.annotate(BOB, room.thread, Pin)
    assert not room.post().is_pinned


# ── deletions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_after_a_deletion_nothing_is_left_but_a_place(room: Room) -> None:
    story = room.story
    story.annotate(CARA, room.thread, Edit, text="edited", title="edited")
    story.annotate(ANN, room.thread, Pin)
    react = story.annotate(DAN, room.thread, React, emoji="👍")
    reader = room.reader()
    assert reader.board.erase(new_id("?"), 99) is None
    post = reader.board.erase(room.thread.object_id, 11)
    assert post == reader.post(room.thread)
    assert post is not None
    assert (post.title, post.text, post.file, post.erased_at, post.edited_at) == ("", "", None, 11, 0)
    assert (post.is_pinned, dict(post.reactions)) == (False, {})
    assert (post.author_id, post.seq, post.kind) == (CARA.user_id, room.thread.seq, Kind.THREAD_POSTED)
    post = reader.board.erase(react.object_id, 12)
    assert post is not None
    assert (post.text, post.erased_at) == ("", 11)


def test_nothing_can_be_done_with_what_is_deleted(room: Room) -> None:
    """The relay shows it as the log says; and a board that has erased it takes nothing more for it."""
    story = room.story
    edit = story.annotate(CARA, room.thread, Edit, text="edited")
    reader = room.reader()
    known = reader.log.index.by_seq(edit.seq)
    assert known is not None
    opened = open_event(reader.log, reader.keyring, edit)
    reader.board.erase(room.thread.object_id, 9)
    assert reader.board.annotate(opened) is None
    assert reader.post(room.thread).text == ""


def test_a_file_that_has_expired_is_only_a_place(room: Room) -> None:
    file = room.story.file(DAN, room.thread)
    room.story.annotate(DAN, file, Edit, text="another caption")
    seq = room.story.by_relay(Kind.MEDIA_EXPIRED, file.object_id).seq
    reader = Reader(room.story.keys).take_all(room.story.events[:-1])
    post = reader.board.erase(file.object_id, seq)
    assert post is not None
    assert (post.file, post.text, post.erased_at) == (None, "", seq)
    late = Reader(room.story.keys)
    late.log, _ = room.story.log()
    shown = post_of(open_event(late.log, reader.keyring, file))
    assert (shown.file, shown.text, shown.erased_at, shown.file_iv) == (None, "", seq, b"")


def test_a_problem_is_over_with_what_had_it(room: Room) -> None:
    reader = room.reader()
    known = reader.log.index.by_seq(room.thread.seq)
    assert known is not None
    reader.board.put(sealed_post(room.thread, known, MissingKey(1)))
    post = reader.board.erase(room.thread.object_id, 9)
    assert post is not None
    assert post.problem is None


# ── what is annotated ───────────────────────────────────────────────────────────────────────────────────────────────


def test_annotations_of_annotations_count_for_nothing(room: Room) -> None:
    story = room.story
    react = story.annotate(DAN, room.thread, React, emoji="👍")
    story.annotate(DAN, react, Edit, text="forged")
    story.annotate(ANN, react, Unreact, emoji="👍")
    reader = room.reader()
    assert reader.post(room.thread).reactions == {"👍": frozenset({DAN.user_id})}
    assert reader.board.get(react.object_id) is None


def test_an_annotation_of_what_the_board_has_not_is_none(room: Room) -> None:
    edit = room.story.annotate(CARA, room.thread, Edit, text="edited")
    reader = room.reader()
    opened = open_event(reader.log, reader.keyring, edit)
    assert Board(reader.log.role_at).annotate(opened) is None
    erased = Opened(edit, opened.known)
    board = Board(reader.log.role_at)
    board.put(post_of(open_event(reader.log, reader.keyring, room.thread)))
    assert board.annotate(erased) is None, "of what was erased nobody knows what it was"
    annotated = board.annotate(opened)
    assert annotated is not None
    assert annotated == board.get(room.thread.object_id)
    assert annotated.text == "edited"


def test_an_annotation_that_does_not_count_leaves_the_message_as_it_was(room: Room) -> None:
    """What is returned is the message, as it stands."""
    forged = room.story.annotate(DAN, room.thread, Edit, text="forged")
    reader = room.reader()
    opened = open_event(reader.log, reader.keyring, forged)
    assert reader.board.annotate(opened) == reader.post(room.thread)
    assert reader.post(room.thread).text == "a text"


def test_an_annotation_is_of_what_the_chain_says_whatever_the_event_names(room: Room) -> None:
    other = room.story.thread(CARA, "other", "other")
    edit = room.story.annotate(CARA, room.thread, Edit, text="edited")
    reader = Reader(room.story.keys).take_all(room.story.events[:-1])
    reader.log.take(edit)
    opened = open_event(reader.log, reader.keyring, edit)
    reader.board.annotate(replace(opened, event=replace(edit, target_id=other.object_id)))
    assert (reader.post(room.thread).text, reader.post(other).text) == ("edited", "other")


def test_a_board_is_the_same_in_whichever_part_it_was_built(room: Room) -> None:
    """All at once, or with a message that can be read only at the end."""
    story = room.story
    reply = story.reply(DAN, room.thread)
    story.annotate(DAN, reply, Edit, text="edited")
    story.annotate(BOB, reply, Pin)
    story.annotate(ANN, reply, React, emoji="👍")
    reader = room.reader()
    board = Board(reader.log.role_at)
    known = reader.log.index.by_seq(reply.seq)
    assert known is not None
    board.put(sealed_post(reply, known, MissingKey(1)))
    for event in story.events[reply.seq :]:
        board.annotate(open_event(reader.log, reader.keyring, event))
    board.put(post_of(open_event(reader.log, reader.keyring, reply)))
    assert board.get(reply.object_id) == reader.post(reply)
    assert (reader.post(reply).text, reader.post(reply).is_pinned) == ("edited", True)


def test_a_member_who_left_keeps_what_they_said() -> None:
    story = Story()
    story.join(EVE, story.invite(ANN))
    thread = story.thread(EVE, "of eve", "hello")
    story.annotate(EVE, thread, Edit, text="hello again")
    story.leave(EVE)
    story.rekey(ANN)
    story.join(EVE, story.invite(ANN, invite_id=new_id("again")))
    story.annotate(EVE, thread, Edit, text="back again")
    reader = Reader(story.keys).take_all(story.events)
    assert (reader.findings, reader.problems) == ([], {})
    assert reader.post(thread).text == "back again"
