"""The client: an account, its groups, and the people in them. What is sent is sealed; what is shown is verified."""

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from orbital_client.account import Accounts, StoredTokens, identity_of
from orbital_client.crypto.backups import Known
from orbital_client.crypto.fingerprints import fingerprint
from orbital_client.crypto.groupkeys import GroupKey
from orbital_client.crypto.invites import open_key
from orbital_client.errors import AdmissionNeeded, ClientClosed, NotFound, OrbitalError
from orbital_client.group import Group, Knock
from orbital_client.identity import Identity, uuid7
from orbital_client.intake import Ears, Intake
from orbital_client.keeper import Keeper
from orbital_client.links import InviteLink
from orbital_client.people import People, Person
from orbital_client.pulse import Pulse
from orbital_client.rekeying import seal_name, wrap_for
from orbital_client.replica import Replica
from orbital_client.store import Expected, Source, Store
from orbital_client.trust.findings import Finding
from orbital_client.trust.log import Log
from orbital_client.trust.signals import Heard
from orbital_client.wire import Client as WireClient
from orbital_client.wire import Disconnected, Reconnected
from orbital_client.wire.backoff import Backoff
from orbital_protocol.codes import History, Role
from orbital_protocol.frames import Cursor, InviteOpenOk, JoinRequested
from orbital_protocol.statements import RosterEntry

log = logging.getLogger("orbital_client")

_NOTICES: Final = 1_000
_BACKUP_AFTER_S: Final = 2.0
_LAST_BACKUP_S: Final = 5.0
_POLL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class GroupEntered:
    """There is a group that was not there before: this user was admitted, or joined on another device."""

    group: Group


Notice = Finding | Knock | GroupEntered | Disconnected | Reconnected
"""What an application may want to tell its user, whichever group it concerns."""


class Client:
    """A user at a relay.

    `async with Client(url, store=path) as client:`, then `register`, `login`, or `resume` what the store remembers.
    From then on everything that comes in is verified, keys are fetched, made and passed on, and connections taken up
    again, without being asked for. One client at a time uses a store; without one, everything ends with the process.
    """

    def __init__(
        self,
        url: str,
        *,
        store: Store | str | Path = ":memory:",
        timeout_s: float = 30.0,
        tls: ssl.SSLContext | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.store = store if isinstance(store, Store) else Store(store)
        self.wire = WireClient(
            url, tokens=StoredTokens(self.store), follow=False, timeout_s=timeout_s, tls=tls, backoff=backoff
        )
        """The client of opaque bytes underneath."""
        self.people = People(self.wire, self.store)
        self._accounts = Accounts(self.wire, self.store, url)
        self._identity: Identity | None = None
        self._replicas: dict[bytes, Replica] = {}
        self._groups: dict[bytes, Group] = {}
        self._keepers: dict[bytes, Keeper] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._notices: deque[Notice] = deque(maxlen=_NOTICES)
        self._notice = Pulse()
        self._dirty = asyncio.Event()
        ears = Ears(self._heard, self._knocked, self._connected, self._disconnected, self._found)
        self._intake = Intake(self.wire, self.store, self._replicas, ears)

    async def __aenter__(self) -> Self:
        await self.wire.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Back up what is not backed up, end the connection, keep the store, and leave nothing running."""
        if self._dirty.is_set() and self._identity is not None and not self._identity.is_bot:
            with contextlib.suppress(OrbitalError, TimeoutError):
                async with asyncio.timeout(_LAST_BACKUP_S):
                    await self.back_up()
        await self.wire.close()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.store.close()

    # ── the account ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def register(
        self, username: str, passphrase: str, *, registration_code: str | None = None, device: str = ""
    ) -> None:
        """Make an account, and sign in. The passphrase is all that a second device needs: six random words are good."""
        await self._start(
            await self._accounts.register(username, passphrase, registration_code=registration_code, device=device)
        )

    async def login(self, username: str, passphrase: str, *, device: str = "") -> None:
        """Sign in, on this device or a new one. Raises AccountRefused, WrongPassphrase, Malformed, BackupRolledBack."""
        await self._start(await self._accounts.login(username, passphrase, device=device))

    async def resume(self) -> None:
        """Sign in as the store remembers. Raises ClientClosed where it remembers nobody, NotAuthenticated."""
        account = self.store.account()
        if account is None:
            raise ClientClosed("nobody has logged in here: register or log in")
        identity = identity_of(account)
        await self.wire.authenticate(identity)
        await self._start(identity)

    async def register_bot(self, username: str, *, registration_code: str | None = None) -> tuple[str, bytes]:
        """Make a bot's account, and sign in; return its password, and what opens the backup of its keys."""
        identity, password, backup_key = await self._accounts.register_bot(
            username, registration_code=registration_code
        )
        await self._start(identity)
        return password, backup_key

    async def authenticate_bot(self, token: str, backup_key: bytes) -> None:
        """Sign in as a bot: its keys come from its backup. Raises NotAuthenticated, WrongPassphrase, Malformed."""
        user_id = await self.wire.authenticate(token=token)
        account = self.store.account()
        name = account.username if account and account.user_id == user_id else ""
        await self._start(await self._accounts.restore(name, user_id, backup_key))
        await self.people.learn([user_id])

    async def login_bot(self, username: str, password: str, backup_key: bytes) -> None:
        """Sign in as a bot with the password of its account, which may all that a bot's token may not."""
        user_id = await self.wire.login(username, password, device_name="bot")
        await self._start(await self._accounts.restore(username, user_id, backup_key))

    async def logout(self) -> None:
        """End this login at the relay. The keys stay in the store."""
        await self.wire.logout()

    async def change_passphrase(self, old: str, new: str) -> None:
        """Change the passphrase. Every other login of the account ends."""
        await self._accounts.change_passphrase(self.identity, self._known(), old, new)

    @property
    def identity(self) -> Identity:
        """Who is signed in, with private keys."""
        if self._identity is None:
            raise ClientClosed("nobody has signed in")
        return self._identity

    @property
    def user_id(self) -> bytes:
        return self.identity.user_id

    @property
    def username(self) -> str:
        account = self.store.account()
        return account.username if account else ""

    async def _start(self, identity: Identity) -> None:
        self._identity = identity
        if self.username:
            self.people.hear(identity.user_id, self.username, identity.public_key)
        self._own("intake", self._intake.run())
        self._own("backups", self._back_up())
        await self.refresh()

    def _own(self, name: str, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name=f"orbital-{name}")
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
        self._notice.beat()  # without the intake, nothing more comes
        if not task.cancelled() and (error := task.exception()):
            log.error("%s ended because of a mistake in this package", name, exc_info=error)

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def refresh(self) -> None:
        """Ask which groups there are, and follow those that are new. Done by itself after each connection."""
        for head in await self.wire.groups():
            group = self._groups.get(head.group_id)
            if group is None or group.gone is not None:
                self._enter(head.group_id)

    @property
    def groups(self) -> list[Group]:
        """The groups that one is in."""
        return [group for group in self._groups.values() if group.gone is None]

    def group(self, group_id: bytes) -> Group:
        """A group that one is in, or was since the client was started. Raises KeyError."""
        return self._groups[group_id]

    def find_group(self, name: str) -> Group:
        """The group of this name, or whose id begins so. Raises NotFound if there is none, or more than one."""
        found = [group for group in self.groups if group.name == name] or [
            group for group in self.groups if name and group.id.hex().startswith(name.lower())
        ]
        if len(found) != 1:
            raise NotFound("not_found", f"{len(found) or 'no'} groups are called {name!r}")
        return found[0]

    async def create_group(self, name: str, *, shared_history: bool = True) -> Group:
        """Make a group. With a shared history, newcomers can read what was posted before; this can't be changed."""
        identity = self.identity
        key = GroupKey.generate(uuid7(), 1)
        await self.wire.create_group(
            seal_name(key, name, identity),
            group_id=key.group_id,
            encrypted_group_key=wrap_for(key, identity.as_member(Role.OWNER), identity.rsa.public_key(), identity),
            key_commitment=key.commitment,
            history=History.SHARED if shared_history else History.NONE,
        )
        return await self._settled(self._enter(key.group_id, key))

    async def join(self, link: InviteLink | str, *, wait_s: float = 30.0) -> Group:
        """Join by an invite link.

        If the group's key has changed since the link was made, the link knocks, and an admin's client that is online
        admits by itself: after `wait_s` without one, AdmissionNeeded is raised, and admission comes when it comes.
        """
        link = InviteLink.parse(link) if isinstance(link, str) else link
        self.store.expect(link.group_id, Expected(link.seq, link.hash, Source.LINK))
        opened_keys: list[GroupKey] = []

        def wrap(opened: InviteOpenOk) -> bytes:
            key = open_key(opened.sealed_group_key or b"", link.group_id, opened.key_epoch, link.invite_id, link.secret)
            opened_keys[:] = [key]
            return wrap_for(key, self.identity.as_member(Role.MEMBER), self.identity.rsa.public_key(), self.identity)

        start = Cursor(group_id=link.group_id, seq=0, hash=bytes(32))
        try:
            await self.wire.join(link, wrap=wrap, after=self._position(link.group_id) or start)
        except AdmissionNeeded:
            await self.wire.knock(link)
            return await self._settled(await self._admitted(link.group_id, wait_s))
        return await self._settled(self._enter(link.group_id, *opened_keys))

    async def knock(self, code: str) -> bytes:
        """Ask a group's admins to be admitted, by its standing code; return the group's id.

        Tell them your fingerprint (`fingerprint`). `admitted` waits for them; so does a notice.
        """
        group_id = await self.wire.knock(code)
        self._own("polling", self._poll(group_id))
        return group_id

    async def admitted(self, group_id: bytes, timeout_s: float) -> Group:
        """The group that one has knocked at, once one is a member. Raises AdmissionNeeded after that time."""
        return await self._settled(await self._admitted(group_id, timeout_s))

    async def _admitted(self, group_id: bytes, timeout_s: float) -> Group:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await self.refresh()
                    if (group := self._groups.get(group_id)) and group.gone is None:
                        return group
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise AdmissionNeeded("no admin has let you in yet: their clients do so as soon as one is online") from None

    async def _poll(self, group_id: bytes) -> None:
        """Look now and then whether an admin has opened; nothing tells."""
        backoff = Backoff(base_s=_POLL_S)
        while (group := self._groups.get(group_id)) is None or group.gone is not None:
            await asyncio.sleep(_POLL_S + backoff.next_s(None))
            with contextlib.suppress(OrbitalError):
                await self.refresh()

    async def _settled(self, group: Group) -> Group:
        """The group, once its log is verified up to now and its key is there, as far as it can be."""
        await group.live()
        await self._keepers[group.id].learn_name()
        self._dirty.set()
        return group

    def _position(self, group_id: bytes) -> Cursor | None:
        replica = self._replicas.get(group_id) or self._restore(group_id)
        return replica.log.position if replica else None

    def _restore(self, group_id: bytes) -> Replica | None:
        """The replica of a group that the store knows."""
        for stored_id, state, keys in self.store.groups():
            if stored_id == group_id:
                group_log = Log.restore(state, self.store.index(group_id))
                self._replicas[group_id] = Replica(self.wire, self.store, self.people, group_log, keys)
                return self._replicas[group_id]
        return None

    def _enter(self, group_id: bytes, *keys: GroupKey) -> Group:
        """Follow a group from where it was verified, and look after it."""
        replica = self._replicas.get(group_id) or self._restore(group_id)
        if replica is None:
            group_log = Log(group_id, self.store.index(group_id))
            replica = Replica(self.wire, self.store, self.people, group_log, {})
            self._replicas[group_id] = replica
        replica.gone = None
        replica.offer(*keys)
        self.wire.follow_from(replica.log.position)
        if group_id not in self._groups:
            keeper = Keeper(replica, self.people, self.identity)
            self._keepers[group_id] = keeper
            self._groups[group_id] = Group(
                client=self.wire,
                replica=replica,
                keeper=keeper,
                people=self.people,
                identity=self.identity,
                after_change=self._dirty.set,
            )
            self._tell(GroupEntered(self._groups[group_id]))
        if f"keeper-{group_id.hex()}" not in self._tasks:
            self._own(f"keeper-{group_id.hex()}", self._keepers[group_id].run())
        return self._groups[group_id]

    # ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def fingerprint(self) -> str:
        """One's own fingerprint, for others to compare."""
        identity = self.identity
        return fingerprint(identity.user_id, identity.rsa_thumbprint, identity.signing_key)

    def verify(self, user_id: bytes) -> Person:
        """Somebody's fingerprint, to be compared with what they see of themselves. Raises NotFound for a stranger."""
        return self.people.person(self._entry(user_id))

    def mark_verified(self, user_id: bytes) -> None:
        """The fingerprint was compared, and is right. Changed keys are accepted by that."""
        self.people.accept(self._entry(user_id), is_verified=True)
        self._met()

    def accept_key(self, user_id: bytes) -> None:
        """Take somebody's changed keys as theirs without having compared."""
        self.people.accept(self._entry(user_id), is_verified=False)
        self._met()

    def _entry(self, user_id: bytes) -> RosterEntry:
        for replica in self._replicas.values():
            if replica.gone is None and (entry := replica.log.roster.get(user_id)):
                return entry
        raise NotFound("not_found", "nobody of that id is in any of your groups")

    def _met(self) -> None:
        for replica in self._replicas.values():
            replica.settle()
        self.store.commit()
        self._dirty.set()

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────────────

    async def notices(self) -> AsyncIterator[Notice]:
        """What was found wrong, who knocks, new groups, how the connection is: the last thousand, then as it comes."""
        while True:
            while self._notices:
                yield self._notices.popleft()
            if self._intake.ended is not None:
                return
            await self._notice.wait()

    def check(self) -> None:
        """Raise why nothing comes in any more, if so: Closed, NotAuthenticated."""
        if self._intake.ended is not None:
            raise self._intake.ended.with_traceback(None)

    def _tell(self, notice: Notice) -> None:
        self._notices.append(notice)
        self._notice.beat()

    def _heard(self, heard: Heard) -> None:
        if (group := self._groups.get(heard.group_id)) and heard.user_id != self.user_id:
            group.hear(heard)

    def _knocked(self, knock: JoinRequested) -> None:
        if keeper := self._keepers.get(knock.group_id):
            keeper.knock(knock.request)
            self._tell(Knock(self._groups[knock.group_id], knock.request))

    def _found(self, finding: Finding) -> None:
        self._tell(finding)

    def _connected(self) -> None:
        self._tell(Reconnected())
        if "refresh" not in self._tasks:
            self._own("refresh", self._refresh())

    async def _refresh(self) -> None:
        with contextlib.suppress(OrbitalError):
            await self.refresh()

    def _disconnected(self, closure: Disconnected) -> None:
        self._tell(closure)

    # ── the backup ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _known(self) -> list[Known]:
        return [
            Known(group_id, replica.log.position.seq, replica.log.position.hash, replica.log.key_epoch)
            for group_id, replica in self._replicas.items()
            if replica.gone is None and replica.broken is None and replica.log.position.seq
        ]

    async def back_up(self) -> None:
        """Back up keys, pins and how far groups were verified, now; it is done by itself some time after a change."""
        self._dirty.clear()
        try:
            await self._accounts.back_up(self.identity, self._known())
        except BaseException:
            self._dirty.set()
            raise

    async def _back_up(self) -> None:
        """Back up some time after pins or groups have changed. A bot's token lacks the right to."""
        while not self.identity.is_bot:
            await self._dirty.wait()
            await asyncio.sleep(_BACKUP_AFTER_S)
            try:
                if self._dirty.is_set():
                    await self.back_up()
            except OrbitalError as error:
                log.warning("the keys could not be backed up: %s", error)
