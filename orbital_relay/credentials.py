"""Passwords and tokens: bcrypt in a bounded pool of threads, access tokens (JWT), refresh tokens and bot tokens.

No database here. Times are microseconds since 1970 UTC, and the clock is handed in. The secrets of refresh and bot
tokens are 32 random bytes, so that a plain SHA-256 of them is safe to keep.
"""

import asyncio
import binascii
import hmac
import threading
import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import sha256
from os import urandom
from typing import Any, Final, Literal, Self, TypeVar

import bcrypt
import jwt
import msgspec

from orbital_protocol.frames import ErrorDetails
from orbital_relay.config import TokenKey
from orbital_relay.errors import BadArgument, CredentialsInvalid, Overloaded, TokenExpired, Unauthenticated

T = TypeVar("T")

_S: Final = 1_000_000
_ID_BYTES: Final = 16
_SECRET_BYTES: Final = 32


# ── threads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Workers:
    """Threads for what would hold up the event loop; so many jobs at a time, so many waiting, no more."""

    def __init__(self, threads: int, queue: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="orbital-worker")
        self._room = threading.BoundedSemaphore(threads + queue)

    async def run(self, job: Callable[[], T]) -> T:
        """Carry a job out in a thread; raise Overloaded where too many wait already."""
        if not self._room.acquire(blocking=False):
            raise Overloaded("Too many passwords and signatures to check.")
        future = self._executor.submit(job)
        # Not in a `finally` here: whoever waits may be cancelled, while the thread works on.
        future.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop what waits; what has begun ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


# ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────────

BCRYPT_COST: Final = 12
PASSWORD_BYTES_MAX: Final = 72
"""bcrypt looks at no more; a longer password is refused, never cut."""
PASSWORD_LENGTH_MIN: Final = 8


def check_password(password: str, name: str = "password") -> bytes:
    """What bcrypt is given for a password; raise BadArgument for one that no account can have."""
    raw = password.encode()
    if len(raw) > PASSWORD_BYTES_MAX:
        raise _bad(name, f"has more than {PASSWORD_BYTES_MAX} bytes", limit=PASSWORD_BYTES_MAX)
    if b"\0" in raw:
        raise _bad(name, "has a NUL")
    return raw


def check_new_password(password: str, name: str = "password") -> bytes:
    """The same for a password that an account is to have from now on."""
    if len(password) < PASSWORD_LENGTH_MIN:
        raise _bad(name, f"has fewer than {PASSWORD_LENGTH_MIN} characters", limit=PASSWORD_LENGTH_MIN)
    return check_password(password, name)


def _bad(name: str, what: str, limit: int | None = None) -> BadArgument:
    return BadArgument(f"The {name} {what}.", details=ErrorDetails(field=name, limit=limit))


class Passwords:
    """Hashes of passwords."""

    def __init__(self, workers: Workers, cost: int = BCRYPT_COST) -> None:
        self._workers = workers
        self._cost = cost
        # Of the right form and cost, and of no password: nobody knows one whose hash is all zero bits.
        self._nobodys = f"$2b${cost:02}$".encode() + b"." * 53

    async def hash(self, password: bytes) -> str:
        """The hash to keep; raise Overloaded where too many wait already."""
        return (await self._workers.run(lambda: bcrypt.hashpw(password, bcrypt.gensalt(self._cost)))).decode("ascii")

    async def verify(self, password: bytes, password_hash: str | None) -> bool:
        """Whether the hash is of this password; None, where there is no such user, takes as long and is False."""
        expected = self._nobodys if password_hash is None else password_hash.encode()
        matches = await self._workers.run(lambda: _matches(password, expected))
        return matches and password_hash is not None


def _matches(password: bytes, expected: bytes) -> bool:
    try:
        return bcrypt.checkpw(password, expected)
    except ValueError:  # a hash that is none, such as of an account made without a password
        return False


# ── access tokens ───────────────────────────────────────────────────────────────────────────────────────────────────

_ALGORITHM: Final = "HS256"
_TYPE: Final = "at+jwt"


class _Claims(msgspec.Struct, frozen=True):
    """What an access token has to say, in this form and no other; `iat` and `exp` are seconds."""

    iss: Literal["orbital"]
    aud: Literal["orbital-relay"]
    typ: Literal["access"]
    iat: int
    exp: int
    sub: uuid.UUID
    sid: uuid.UUID
    tep: int


_read_claims: Final = msgspec.json.Decoder(_Claims).decode


@dataclass(frozen=True, slots=True)
class Access:
    """What an access token says: until when it speaks for which user, session and token epoch."""

    user_id: bytes
    session_id: bytes
    token_epoch: int
    expires_at: int


class AccessTokens:
    """Signs with the first key, and takes what any of the keys has signed."""

    def __init__(self, keys: Sequence[TokenKey]) -> None:
        self._jws = jwt.PyJWS([_ALGORITHM])
        self.use(keys)

    def use(self, keys: Sequence[TokenKey]) -> None:
        """Sign with the first of these from now on, and take what any of them has signed, and nothing else."""
        self._signing = keys[0]
        self._keys = {key.kid: key.secret for key in keys}
        self._by_header = {_header_part(key): key.secret for key in keys}  # as relays write them

    def sign(self, access: Access, now: int) -> str:
        """The token. `expires_at` must be a whole second."""
        claims = _Claims(
            iss="orbital",
            aud="orbital-relay",
            typ="access",
            iat=now // _S,
            exp=access.expires_at // _S,
            sub=uuid.UUID(bytes=access.user_id),
            sid=uuid.UUID(bytes=access.session_id),
            tep=access.token_epoch,
        )
        return _sign(msgspec.to_builtins(claims), self._signing)

    def verify(self, token: str, now: int) -> Access:
        """What a token says; raise TokenExpired for one that was good, Unauthenticated for anything else.

        The key is one of ours, chosen by `kid` alone: what a header says of keys elsewhere is not looked at.
        """
        try:
            claims = _read_claims(self._payload_of(token))
        except (jwt.InvalidTokenError, ValueError) as error:  # msgspec's are among the latter
            raise Unauthenticated("The access token is not valid here.") from error
        access = Access(claims.sub.bytes, claims.sid.bytes, claims.tep, claims.exp * _S)
        if access.expires_at <= now:
            raise TokenExpired
        return access

    def _payload_of(self, token: str) -> bytes:
        """What the token's signature is good for. One with a header that we write, byte for byte, is in no need of a
        parser, which takes ten times as long as its hash; a thousand clients may come back at once.
        """
        signed, _, signature = token.rpartition(".")
        header, _, payload = signed.partition(".")
        secret = self._by_header.get(header)
        if secret is None:
            return bytes(self._jws.decode(token, self._secret_for(token), algorithms=[_ALGORITHM]))
        digest = urlsafe_b64encode(hmac.digest(secret, signed.encode(), "sha256")).rstrip(b"=")
        if not hmac.compare_digest(digest, signature.encode()):
            raise jwt.InvalidSignatureError("not signed by us")
        return urlsafe_b64decode(payload + "==")

    def _secret_for(self, token: str) -> bytes:
        header = jwt.get_unverified_header(token)
        kid = header.get("kid")
        if header.get("typ") != _TYPE or "crit" in header or not isinstance(kid, str) or kid not in self._keys:
            raise jwt.InvalidTokenError("not a token of ours")
        return self._keys[kid]


def _sign(claims: dict[str, Any], key: TokenKey) -> str:
    return jwt.encode(claims, key.secret, algorithm=_ALGORITHM, headers={"typ": _TYPE, "kid": key.kid})


def _header_part(key: TokenKey) -> str:
    """What stands before the first dot of every token that is signed with this key."""
    return _sign({}, key).partition(".")[0]


# ── refresh tokens and bot tokens ───────────────────────────────────────────────────────────────────────────────────


def secret_hash(secret: bytes) -> bytes:
    """What the database keeps of a secret."""
    return sha256(secret).digest()


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """`orb_refresh_` and base64url of session, family and secret. All tokens of a session are one family."""

    session_id: bytes
    family: bytes = field(repr=False)
    secret: bytes = field(repr=False)

    PREFIX = "orb_refresh_"

    @classmethod
    def first(cls, session_id: bytes) -> Self:
        """The first of a new session."""
        return cls(session_id, urandom(_ID_BYTES), urandom(_SECRET_BYTES))

    def successor(self) -> "RefreshToken":
        """The next of its family."""
        return RefreshToken(self.session_id, self.family, urandom(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token; raise CredentialsInvalid for what is none."""
        return cls(*_unpack(text, cls.PREFIX, (_ID_BYTES, _ID_BYTES, _SECRET_BYTES)))

    def __str__(self) -> str:
        return _pack(self.PREFIX, self.session_id + self.family + self.secret)


@dataclass(frozen=True, slots=True)
class BotToken:
    """`orb_bot_` and base64url of the token's id and secret."""

    token_id: bytes
    secret: bytes = field(repr=False)

    PREFIX = "orb_bot_"

    @classmethod
    def new(cls, token_id: bytes) -> Self:
        """A token with a secret that nobody knows yet."""
        return cls(token_id, urandom(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token; raise CredentialsInvalid for what is none."""
        return cls(*_unpack(text, cls.PREFIX, (_ID_BYTES, _SECRET_BYTES)))

    def __str__(self) -> str:
        return _pack(self.PREFIX, self.token_id + self.secret)


def _pack(prefix: str, raw: bytes) -> str:
    return prefix + urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _unpack(text: str, prefix: str, sizes: Sequence[int]) -> list[bytes]:
    body = text.removeprefix(prefix)
    try:
        raw = urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != sum(sizes) or _pack(prefix, raw) != text:
        raise CredentialsInvalid
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [raw[end - size : end] for end, size in zip(ends, sizes, strict=True)]


@dataclass(frozen=True, slots=True)
class Family:
    """What is kept of a session's refresh tokens: the newest, and the one before it."""

    family_hash: bytes
    refresh_hash: bytes
    previous_refresh_hash: bytes | None


class Refreshing(Enum):
    """What a refresh token is worth."""

    ROTATE = auto()
    """It is the newest: it becomes the previous one."""
    REPLACE = auto()
    """It is the previous one, whose successor never was used (the answer got lost): another successor."""
    REUSE = auto()
    """It is an older one, or made up by somebody who knows the family: it was stolen."""
    REFUSE = auto()
    """It is of another family: it says nothing about this session."""


def judge(token: RefreshToken, family: Family) -> Refreshing:
    """What the token is worth for a live session with this family."""
    presented = secret_hash(token.secret)
    if not hmac.compare_digest(secret_hash(token.family), family.family_hash):
        return Refreshing.REFUSE
    if hmac.compare_digest(presented, family.refresh_hash):
        return Refreshing.ROTATE
    if family.previous_refresh_hash is not None and hmac.compare_digest(presented, family.previous_refresh_hash):
        return Refreshing.REPLACE
    return Refreshing.REUSE


# ── what a session is given ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Grant:
    """Tokens for a session, fresh."""

    user_id: bytes
    session_id: bytes
    token_epoch: int
    access_token: str = field(repr=False)
    access_expires_at: int
    refresh_token: RefreshToken
    refresh_expires_at: int


class Mint:
    """Makes the tokens of sessions."""

    def __init__(self, access: AccessTokens, *, access_ttl_s: int, refresh_ttl_s: int) -> None:
        self.access = access
        self._access_ttl_s = access_ttl_s
        self._refresh_ttl_s = refresh_ttl_s

    def grant(self, user_id: bytes, token_epoch: int, refresh_token: RefreshToken, now: int) -> Grant:
        """A new access token beside this refresh token, both good from now on."""
        second = now // _S
        refresh_expires_at = (second + self._refresh_ttl_s) * _S
        access_expires_at = min((second + self._access_ttl_s) * _S, refresh_expires_at)
        access = Access(user_id, refresh_token.session_id, token_epoch, access_expires_at)
        return Grant(
            user_id=user_id,
            session_id=refresh_token.session_id,
            token_epoch=token_epoch,
            access_token=self.access.sign(access, now),
            access_expires_at=access_expires_at,
            refresh_token=refresh_token,
            refresh_expires_at=refresh_expires_at,
        )
