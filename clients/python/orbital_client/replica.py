"""This client's copy of a group: its log as verified, its keys, and what is going on in it right now."""

import asyncio
from collections import deque
from itertools import islice
from typing import Final

from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.errors import CannotOpen, ChainFork, LogBroken, OrbitalError
from orbital_client.people import People
from orbital_client.pulse import Pulse
from orbital_client.store import Expected, Source, Store, StoredIndex
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.trust.keyring import Keyring
from orbital_client.trust.log import Log, Step
from orbital_client.trust.signals import Signals
from orbital_client.wire import Client, Posted
from orbital_protocol.codes import Kind
from orbital_protocol.frames import Event
from orbital_protocol.statements import KeyReplaced

_RECENT: Final = 256
_FINDINGS: Final = 256
_SOON_S: Final = 5.0


class Replica:
    """A group that this client follows. It is the `Knowledge` on which statements are built."""

    def __init__(self, wire: Client, store: Store, people: People, log: Log, secrets: dict[int, bytes]) -> None:
        self.log = log
        self.keyring = Keyring(log, secrets)
        self.signals = Signals(log, self.keyring)
        self.wire = wire.group(log.group_id, self)
        self.pulse = Pulse()
        self.is_live = False
        """Whether everything up to the relay's head has come."""
        self.gone: str | None = None
        """Why this user sees nothing more of the group: left, removed, deleted or denied."""
        self.broken: OrbitalError | None = None
        """What has shown that the relay can't be trusted with this group."""
        self.changed_keys: set[bytes] = set()
        """Members whose keys are not those that this client knew."""
        self.findings: deque[Finding] = deque(maxlen=_FINDINGS)
        self.news: deque[Finding] = deque(maxlen=_FINDINGS)
        """Findings that nobody has been told of yet."""
        self._relay = wire
        self._store = store
        self._people = people
        self._recent: deque[Event] = deque(maxlen=_RECENT)
        self._offered: list[GroupKey] = []
        self._expected: dict[int, Expected] = {}
        self._catching_up = asyncio.Lock()
        for expected in store.expected(log.group_id).values():
            self.expect(expected)
        self._overdue = set(self._expected)

    @property
    def group_id(self) -> bytes:
        return self.log.group_id

    @property
    def index(self) -> StoredIndex:
        """All events of the log, and what can be asked of them."""
        return self._store.index(self.group_id)

    def check(self) -> None:
        """Raise what has broken the trust in this group."""
        if self.broken is not None:
            raise self.broken.with_traceback(None)

    # ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, event: Event) -> Step | None:
        """Go on by one event; None for one that has come before. Raises LogBroken."""
        if event.seq <= self.log.position.seq:
            if self.log.index.hash_at(event.seq) != event.hash:
                raise ChainFork(self.group_id, event.seq, "the relay has another event here than it had before")
            return None
        before = self.log.roster.get(event.actor_id) if event.kind == Kind.KEY_REPLACED else None
        step = self.log.take(event)
        self._recent.append(event)
        if step.finding is not None:
            self.find(step.finding)
        if isinstance(step.statement, KeyReplaced) and before is not None:
            self._people.replaced(before, self.log.roster[event.actor_id])
        if expected := self._expected.pop(event.seq, None):
            self._store.forget_expected(self.group_id, event.seq)
            if expected.hash != event.hash:
                self._miss(expected)
        return step

    def go_live(self) -> None:
        """Everything up to the relay's head has come: what was expected before is there, or never comes."""
        self.is_live = True
        for seq in self._overdue & self._expected.keys():
            if seq > self.log.position.seq:
                self._miss(self._expected[seq])
        self._overdue.clear()

    def go_offline(self) -> None:
        """Nothing more comes for now."""
        self.is_live = False
        self._overdue = set(self._expected)

    def _miss(self, expected: Expected) -> None:
        """The log has not what it must have."""
        if expected.source is Source.POST:
            self.find(Finding(Flaw.LOST_POST, self.group_id, expected.seq))
            return
        finding = Finding(Flaw.OTHER_LOG, self.group_id, expected.seq)
        self.find(finding)
        self.break_off(ChainFork(self.group_id, expected.seq, finding.text))

    def settle(self) -> None:
        """After one or more events: look at who is here now, keep what was learned, and wake whoever waits."""
        if self.is_live:
            changed = self._people.meet(self.log.roster.values())
            for user_id in changed - self.changed_keys:
                self.find(Finding(Flaw.KEY_CHANGED, self.group_id, user_id=user_id, detail=self._people.name(user_id)))
            self.changed_keys = changed
        self._store.put_state(self.group_id, self.log.save())
        self._take_offered()
        self.pulse.beat()

    def find(self, finding: Finding) -> None:
        """Take note of something that should not be."""
        self.findings.append(finding)
        self.news.append(finding)

    def break_off(self, error: OrbitalError) -> None:
        """This group's log can't be trusted from here on."""
        self.broken = error
        self.pulse.beat()

    def offer(self, *keys: GroupKey) -> None:
        """Keys that are the group's if the log says so, once it has come so far."""
        self._offered += keys
        self._take_offered()

    def _take_offered(self) -> None:
        for key in list(self._offered):
            if key.epoch <= self.log.key_epoch and self.log.position.seq:
                self._offered.remove(key)
                try:
                    if self.keyring.add(key):
                        self._store.put_secrets(self.group_id, self.keyring.secrets())
                except CannotOpen as problem:
                    self.find(Finding(Flaw.WRONG_KEY, self.group_id, detail=str(problem)))

    def keep_keys(self) -> None:
        """Store the keys, and wake whoever waits for them."""
        self._store.put_secrets(self.group_id, self.keyring.secrets())
        self._store.commit()
        self.pulse.beat()

    async def acknowledge(self, posted: Posted) -> None:
        """The relay has confirmed a post: the log must have it there, and soon, so that its author reads it too."""
        self.expect(Expected(posted.seq, posted.hash, Source.POST))
        if self._is_past(posted.seq) or await self.pulse.until(lambda: self._is_past(posted.seq), _SOON_S):
            return
        await self.catch_up()
        if not self._is_past(posted.seq):
            self._miss(self._expected[posted.seq])
            self.settle()

    def _is_past(self, seq: int) -> bool:
        return self.log.position.seq >= seq or self.broken is not None or self.gone is not None

    def expect(self, event: Expected) -> None:
        """The log must have this, now or once it has come so far."""
        if event.seq > self.log.position.seq:
            self._expected[event.seq] = event
            self._store.expect(self.group_id, event)
        elif self.log.index.hash_at(event.seq) != event.hash:
            self._miss(event)
            self.pulse.beat()

    async def has_gone(self) -> bool:
        """After the relay has said that there is no such group: whether this user sees it no more, which comes soon."""
        return await self.pulse.until(lambda: self.gone is not None or self.broken is not None, _SOON_S)

    def recent(self, seq: int) -> list[Event]:
        """The event at this seq and all that came after it, if it came not long ago; otherwise none."""
        first = self._recent[0].seq if self._recent else seq + 1
        return list(islice(self._recent, seq - first, None)) if first <= seq else []

    # ── Knowledge ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def loaded(self) -> Log:
        """The verified log, which has at least the group's creation."""
        self.check()
        if self.log.position.seq == 0:
            await self.catch_up()
        return self.log

    async def catch_up(self) -> None:
        """Bring the log to the relay's head. Raises LogBroken."""
        async with self._catching_up:
            more = True
            while more:
                position = self.log.position
                page = await self.wire.history(after_seq=position.seq)
                try:
                    if page.events and page.previous_hash != position.hash:
                        raise ChainFork(self.group_id, position.seq, "the relay's log goes on from another event")
                    if not page.events and page.seq > position.seq:
                        raise self.log.broken("the relay leaves out what comes next")
                    for event in page.events:
                        self.take(event)
                except LogBroken as error:
                    self.break_off(error)
                    raise
                more = bool(page.events) and page.more
        self.settle()
        self._store.commit()

    def observe(self, event: Event) -> None:
        """What the subscription brings, the intake hands on."""
