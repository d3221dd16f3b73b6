"""What a client does for a group by itself: fetch its keys, make a new one when it is due, admit whoever has a link."""

import logging
import random
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from orbital_client.crypto import contents, envelopes
from orbital_client.crypto.envelopes import NO_KIND, Field, Place
from orbital_client.crypto.jwk import rsa_key
from orbital_client.errors import (
    CannotOpen,
    CannotPost,
    ClientClosed,
    Closed,
    KeyChanged,
    NotFound,
    OrbitalError,
    Refused,
)
from orbital_client.identity import Identity, thumbprint
from orbital_client.people import People
from orbital_client.rekeying import rekey, wrap_for
from orbital_client.replica import Replica
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.wire.backoff import Backoff
from orbital_protocol import ZERO_ID
from orbital_protocol.codes import Role
from orbital_protocol.frames import GroupGetOk, JoinRequest
from orbital_protocol.statements import RosterEntry, join_preimage, verify_raw

log = logging.getLogger("orbital_client")

_JITTER_S: Final = 0.2
_LATER_S: Final = 2.0
_LOOK_S: Final = 60.0


class Keeper:
    """Looks after one group, for as long as it is followed."""

    def __init__(self, replica: Replica, people: People, identity: Identity) -> None:
        self.name = ""
        """What the group is called, as far as it could be opened."""
        self._looked_at = 0
        self._replica = replica
        self._people = people
        self._identity = identity
        self._name_hash = b""
        self._knocks: dict[bytes, JoinRequest] = {}
        self._wraps_tried: set[bytes] = set()

    async def run(self) -> None:
        """Until the user sees no more of the group, or its log is broken."""
        backoff = Backoff()
        while self._replica.broken is None:
            beat = self._replica.pulse.mark()
            epoch = self._replica.log.key_epoch
            try:
                wait_s: float | None = None
                if self._replica.is_live and self._replica.gone is None:
                    wait_s = None if await self._tend() else _LOOK_S
                    self._look(epoch)
                    backoff = Backoff()
            except (ClientClosed, Closed):
                return
            except NotFound:
                wait_s = None if await self._replica.has_gone() else backoff.next_s(None)
            except (OrbitalError, OSError) as error:
                log.warning("group %s could not be looked after: %s", self._replica.group_id.hex(), error)
                wait_s = backoff.next_s(None)
                self._look(epoch)
            await self._replica.pulse.wait(wait_s, beat)

    @property
    def has_looked(self) -> bool:
        """Whether the key in force has been asked for, or made."""
        return self._looked_at >= self._replica.log.key_epoch

    def _look(self, epoch: int) -> None:
        """The key of this epoch was asked for; another may have come into force meanwhile."""
        if self._looked_at < epoch:
            self._looked_at = epoch
            self._replica.pulse.beat()

    def knock(self, request: JoinRequest) -> None:
        """Somebody asks to be admitted."""
        self._knocks[request.user_id] = request
        self._replica.pulse.beat()

    async def _tend(self) -> bool:
        """Do what is due; whether nothing is left to wait for."""
        replica = self._replica
        if self._identity.user_id not in replica.log.roster:
            return True
        if not self._people.knows(replica.log.roster):
            for member in await replica.wire.members():
                self._people.hear(member.user_id, member.username, member.public_key)
        if replica.keyring.current is None:
            await self._fetch_keys()
        if replica.log.state.rekey_due and not replica.changed_keys and not replica.log.state.tainted_at:
            await self._rekey()
        if replica.log.state.name.hash != self._name_hash:
            await self.learn_name()
        if self._knocks and not replica.log.state.rekey_due:
            await self._admit_all()
        return replica.keyring.current is not None and not replica.log.state.rekey_due

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _fetch_keys(self) -> None:
        """Unwrap what was wrapped for this member; what isn't the group's key is a finding."""
        replica = self._replica
        brought = 0
        for wrapped in await replica.wire.keys():
            digest = sha256(wrapped.encrypted_group_key).digest()
            if replica.keyring.get(wrapped.key_epoch) is not None or digest in self._wraps_tried:
                continue
            try:
                key = replica.keyring.unwrap(self._identity, wrapped.key_epoch, wrapped.encrypted_group_key)
                brought += len(replica.keyring.add(key))
            except CannotOpen as problem:
                self._wraps_tried.add(digest)
                detail = f"epoch {wrapped.key_epoch}: {problem}"
                replica.find(Finding(Flaw.WRONG_KEY, replica.group_id, detail=detail))
                replica.settle()
        if brought:
            replica.keep_keys()

    async def _rekey(self) -> None:
        """Make the group's new key, unless another member's client is quicker."""
        replica = self._replica
        if replica.log.state.shared_history and replica.keyring.current is None:
            return
        delay_s = _JITTER_S * random.random() * min(len(replica.log.roster), 25)  # noqa: S311  spreads clients, no secret
        await replica.pulse.until(lambda: not replica.log.state.rekey_due or replica.broken is not None, delay_s)
        if replica.log.state.rekey_due and replica.gone is None:
            if replica.log.state.name.hash != self._name_hash:
                await self.learn_name()
            try:
                await rekey(replica, self._people, self._identity, self.name or "…")
            except Refused as error:  # a token may lack the right to
                log.info("group %s: no rekey by this client: %s", replica.group_id.hex(), error)
                await replica.pulse.until(lambda: not replica.log.state.rekey_due, _LATER_S)

    # ── the name ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def learn_name(self) -> GroupGetOk:
        """Ask for the name, and take it only if it is the one that the log names last."""
        replica = self._replica
        info = await replica.wire.info()
        name = replica.log.state.name
        if sha256(info.encrypted_name).digest() != name.hash:
            if info.seq <= replica.log.position.seq:
                replica.find(Finding(Flaw.STALE_NAME, replica.group_id))
                replica.settle()
                self._name_hash = name.hash
            return info
        key = replica.keyring.get(name.epoch)
        author = replica.log.state.last_known(name.author_id)
        if key is None or author is None:
            return info
        place = Place(NO_KIND, Field.NAME, replica.group_id, name.author_id, name.epoch)
        try:
            raw = envelopes.unseal(key, place, info.encrypted_name, author.signing_key)
            self.name = contents.name(raw).text
        except CannotOpen as problem:
            log.warning("group %s has a name that can't be opened: %s", replica.group_id.hex(), problem)
        self._name_hash = name.hash
        replica.pulse.beat()
        return info

    # ── knocks ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def knocks(self) -> Mapping[bytes, JoinRequest]:
        """Who has asked to be admitted since this client was started, by user."""
        return self._knocks

    async def _admit_all(self) -> None:
        """Admit by itself whoever knocks with a link that holds; others wait for people."""
        replica = self._replica
        entry = replica.log.roster.get(self._identity.user_id)
        if entry is None or entry.role < Role.ADMIN:
            self._knocks.clear()
            return
        for request in list(self._knocks.values()):
            if request.user_id in replica.log.roster:
                del self._knocks[request.user_id]
            elif self._has_link(request):
                del self._knocks[request.user_id]
                try:
                    await self.admit(request)
                except (CannotPost, KeyChanged, Refused) as error:
                    log.info("nobody admitted to group %s: %s", replica.group_id.hex(), error)

    def _has_link(self, request: JoinRequest) -> bool:
        invite = self._replica.log.state.invites.get(request.invite_id or ZERO_ID)
        if invite is None or invite.is_revoked or request.invite_signature is None:
            return False
        preimage = join_preimage(
            group_id=self._replica.group_id,
            invite_id=request.invite_id or ZERO_ID,
            user_id=request.user_id,
            signing_key=request.signing_key,
            rsa_thumbprint=thumbprint(request.public_key),
        )
        return verify_raw(preimage, request.invite_signature, invite.invite_key)

    async def admit(self, request: JoinRequest) -> None:
        """Make a member of somebody who knocks, with the key in force."""
        replica = self._replica
        key = replica.keyring.current
        if replica.log.state.tainted_at:
            raise CannotPost("the relay has logged a forged change of this group: nobody is admitted to it")
        if key is None:
            raise CannotPost("you have not got the group's key, which the newcomer needs")
        entry = newcomer(request)
        if self._people.meet([entry]):
            raise KeyChanged(request.user_id, request.username)
        rsa = rsa_key(request.public_key, entry.rsa_thumbprint)
        wrapped = wrap_for(key, entry, rsa, self._identity)
        await replica.wire.admit(request, encrypted_group_key=wrapped)
        self._knocks.pop(request.user_id, None)
        await replica.catch_up()


def newcomer(request: JoinRequest) -> RosterEntry:
    """Somebody who knocks, as they would stand in the roster."""
    return RosterEntry(
        request.user_id, Role.MEMBER, request.signing_key, thumbprint(request.public_key), request.is_bot
    )
