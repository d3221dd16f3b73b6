"""Signals: good for a minute, once, by a member, under the key in force or the one before."""

from dataclasses import dataclass

import pytest

from orbital_client.crypto import contents, envelopes
from orbital_client.crypto.contents import HERE, AnySignal, Presence, Typing
from orbital_client.crypto.envelopes import NO_KIND, Field, Place
from orbital_client.errors import BadSeal, CannotOpen, ForgedAuthor, Malformed, MissingKey, UnknownVersion
from orbital_client.identity import Identity
from orbital_client.intake import Ears, Intake
from orbital_client.people import People
from orbital_client.replica import Replica
from orbital_client.store import Store
from orbital_client.trust import signals
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.trust.keyring import Keyring
from orbital_client.trust.log import Log
from orbital_client.trust.signals import GOOD_FOR_US, Heard, Signals, seal_signal
from orbital_client.wire import Client
from orbital_protocol.frames import Signal
from tests.unit.trusting import ANN, BOB, CARA, DAN, EVE, GROUP, T0, Story, company, new_id, someone

NOW = T0


def typing(number: int = 1, sent_at: int = NOW) -> Typing:
    return Typing(id=new_id("signal", number), sent_at=sent_at, thread_id=new_id("thread"))


@dataclass
class Ear:
    """A member of a group who hears its signals."""

    log: Log
    keyring: Keyring
    signals: Signals

    def hear(self, who: Identity, payload: bytes, now_us: int = NOW) -> Heard | None:
        return self.signals.open(who.user_id, payload, now_us)


def ear(story: Story, *epochs: int) -> Ear:
    """With the keys of these epochs, or all."""
    log, _ = story.log()
    keyring = Keyring(log, {epoch: story.keys[epoch].secret for epoch in epochs or story.keys})
    return Ear(log, keyring, Signals(log, keyring))


def sent(story: Story, who: Identity, signal: AnySignal | bytes, epoch: int | None = None) -> bytes:
    """A payload by somebody of the group."""
    epoch = epoch or story.epoch
    raw = signal if isinstance(signal, bytes) else contents.encode(signal)
    place = Place(NO_KIND, Field.SIGNAL, GROUP, who.user_id, epoch)
    return envelopes.seal(story.keys[epoch], place, raw, who.signing)


@pytest.mark.parametrize(
    "signal", [typing(), Typing(id=new_id(), sent_at=NOW), Presence(id=new_id(), sent_at=NOW, state=HERE)]
)
def test_a_member_is_heard(signal: AnySignal) -> None:
    story = company()
    member = ear(story)
    payload = seal_signal(member.log, member.keyring, CARA, signal)
    assert member.hear(CARA, payload) == Heard(GROUP, CARA.user_id, signal)


def test_nothing_is_sent_without_the_key_in_force() -> None:
    story = company()
    story.rekey(ANN)
    member = ear(story, 1)
    with pytest.raises(MissingKey) as caught:
        seal_signal(member.log, member.keyring, CARA, typing())
    assert caught.value.epoch == 2


def test_a_signal_is_good_for_a_minute_by_the_readers_clock() -> None:
    story = company()
    heard = []
    for late in (-GOOD_FOR_US - 1, -GOOD_FOR_US, 0, GOOD_FOR_US, GOOD_FOR_US + 1):
        heard.append(ear(story).hear(CARA, sent(story, CARA, typing()), NOW + late) is not None)
    assert heard == [False, True, True, True, False]
    assert GOOD_FOR_US == 60_000_000


def test_a_signal_is_heard_once() -> None:
    story = company()
    member = ear(story)
    payload = sent(story, CARA, typing())
    assert member.hear(CARA, payload) is not None
    assert member.hear(CARA, payload) is None
    assert member.hear(CARA, sent(story, CARA, typing()), NOW + 1) is None, "sealed once more, it is the same"
    assert member.hear(CARA, sent(story, CARA, typing(2))) is not None


def test_a_signal_that_was_too_old_is_not_kept_in_mind() -> None:
    story = company()
    member = ear(story)
    assert member.hear(CARA, sent(story, CARA, typing(1, NOW - GOOD_FOR_US - 1))) is None
    assert member.hear(CARA, sent(story, CARA, typing(1))) is not None


def test_only_so_many_signals_are_kept_in_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_REMEMBERED", 3)
    story = company()
    member = ear(story)
    payloads = [sent(story, CARA, typing(number)) for number in range(4)]
    assert all(member.hear(CARA, payload) for payload in payloads)
    assert [member.hear(CARA, payload) is not None for payload in payloads[1:]] == [False, False, False]
    assert member.hear(CARA, payloads[0]) is not None, "the oldest gave way"
    assert len(member.signals._seen) == 3


def test_the_key_in_force_and_the_one_before_are_tried() -> None:
    story = company()
    story.rekey(ANN)
    story.rekey(ANN)
    member = ear(story)
    assert member.hear(CARA, sent(story, CARA, typing(1), 3)) is not None
    assert member.hear(CARA, sent(story, CARA, typing(2), 2)) is not None
    with pytest.raises(BadSeal):
        member.hear(CARA, sent(story, CARA, typing(3), 1))
    before = ear(story, 1, 3)
    assert before.hear(CARA, sent(story, CARA, typing(4), 3)) is not None
    with pytest.raises(BadSeal):
        before.hear(CARA, sent(story, CARA, typing(5), 2))


@pytest.mark.parametrize("epochs", [(1,), (2,), (1, 2)])
def test_without_the_key_in_force_nobody_is_blamed(epochs: tuple[int, ...]) -> None:
    """A rekey has just been logged, and its key is on its way."""
    story = company()
    story.rekey(ANN)
    story.rekey(ANN)
    member = ear(story, *epochs)
    with pytest.raises(MissingKey) as caught:
        member.hear(CARA, sent(story, CARA, typing(1), 3))
    assert caught.value.epoch == 3
    if 2 in epochs:
        assert member.hear(CARA, sent(story, CARA, typing(2), 2)) is not None


def test_whoever_is_not_in_the_group_is_not_heard() -> None:
    story = company()
    assert ear(story).hear(EVE, sent(story, EVE, typing())) is None
    story.leave(DAN)
    assert ear(story).hear(DAN, sent(story, DAN, typing())) is None


def test_a_forged_signal_opens_as_no_one_elses() -> None:
    story = company()
    place = Place(NO_KIND, Field.SIGNAL, GROUP, CARA.user_id, 1)
    key, raw = story.keys[1], contents.encode(typing())
    payload = sent(story, CARA, typing())
    elsewhere = Place(NO_KIND, Field.NAME, GROUP, CARA.user_id, 1)
    cases: list[tuple[bytes, type[CannotOpen]]] = [
        (envelopes.seal(key, place, raw, BOB.signing), ForgedAuthor),
        (sent(story, BOB, typing()), BadSeal),
        (payload[:-1] + bytes([payload[-1] ^ 1]), BadSeal),
        (envelopes.seal(key, elsewhere, raw, CARA.signing), BadSeal),
        (envelopes.seal(story.new_key(1, "another"), place, raw, CARA.signing), BadSeal),
        (sent(story, CARA, b"\x81\xa1a\x01"), Malformed),
        (b"", Malformed),
        (b"\x02" + payload[1:], UnknownVersion),
    ]
    for forged, problem in cases:
        member = ear(story)
        with pytest.raises(CannotOpen) as caught:
            member.hear(CARA, forged)
        assert type(caught.value) is problem
        assert member.hear(CARA, payload) is not None, "it does no harm"


def test_a_signal_is_signed_with_the_key_of_now() -> None:
    story = company()
    new = someone("cara", 1)
    story.replace_keys(CARA, new)
    member = ear(story)
    with pytest.raises(ForgedAuthor):
        member.hear(CARA, sent(story, CARA, typing()))
    assert member.hear(CARA, sent(story, new, typing())) is not None


def test_a_signal_of_a_later_client_is_of_an_unknown_version() -> None:
    story = company()
    with pytest.raises(UnknownVersion):
        ear(story).hear(CARA, sent(story, CARA, b"\x81\xa6signal\xa5dance"))


# ── what the client makes of them ───────────────────────────────────────────────────────────────────────────────────


async def test_a_forged_signal_is_a_finding_and_what_can_not_be_known_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    story = company()
    heard: list[Heard] = []
    found: list[Finding] = []
    client = Client("ws://127.0.0.1:9")
    with Store() as store:
        log, _ = story.log(index=store.index(GROUP))
        replica = Replica(client, store, People(client, store), log, {1: story.keys[1].secret})
        ears = Ears(heard.append, print, print, print, found.append)
        intake = Intake(client, store, {GROUP: replica}, ears)
        monkeypatch.setattr("orbital_client.intake.time.time_ns", lambda: NOW * 1000)

        def push(who: Identity, payload: bytes) -> None:
            intake._take(Signal(group_id=GROUP, user_id=who.user_id, payload=payload))
            intake._settle()

        push(CARA, sent(story, CARA, typing()))
        push(CARA, sent(story, CARA, typing()))
        push(EVE, sent(story, EVE, typing(2)))
        push(CARA, sent(story, CARA, b"\x81\xa6signal\xa5dance"))
        assert ([one.user_id for one in heard], found) == ([CARA.user_id], [])
        push(DAN, sent(story, CARA, typing(3)))
        assert [(one.flaw, one.user_id, one.seq) for one in found] == [(Flaw.FORGED_SIGNAL, DAN.user_id, 0)]
        assert list(replica.findings) == found
        replica.take(story.rekey(ANN))
        push(CARA, sent(story, CARA, typing(4)))
        assert len(found) == len(heard) == 1, "its key is not there yet"
