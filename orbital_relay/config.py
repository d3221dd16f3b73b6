"""Settings: one flat, typed, frozen value, merged once at start.

Flags win over the environment (`ORBITAL_…`), that over a TOML file, that over the defaults below. Names carry
their unit. A field with `repr=False` is a secret: it may come from the file that `ORBITAL_<NAME>_FILE` names, and
neither an error nor `describe` shows it.
"""

import base64
import binascii
import dataclasses
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    IPvAnyNetwork,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orbital_protocol.media import SEGMENT_BYTES

_PREFIX = "ORBITAL_"
_CLIENTS = frozenset({"ORBITAL_STORE", "ORBITAL_PASSPHRASE", "ORBITAL_URL", "ORBITAL_BOT_SECRET"})
"""Variables of the command `orbital` and of bots: whoever uses these may start a relay from the same shell."""
_CONFIG = "ORBITAL_CONFIG"
_DEFAULT_FILE = Path("orbital.toml")
_ALIASES = {"DATABASE_URL": "database_url"}
_MASK = "***"
_TOKEN_SECRET_BYTES = 32
# Room that a frame needs beside its largest field: its other keys, ids and signatures.
_FRAME_ROOM_BYTES = 4096

_A_YEAR_S = 31_536_000


class ConfigError(Exception):
    """The configuration cannot be used. `str` has one line a problem: key, value, source, what is allowed."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclasses.dataclass(frozen=True)
class TokenKey:
    """One key that signs access tokens; the id travels in their headers as `kid`."""

    kid: str
    secret: bytes = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read `kid:base64url-secret`; padding may be left out. Raises ValueError, which never shows the text."""
        if isinstance(text, cls):
            return text
        allowed = f"must be kid:secret, the secret base64url of at least {_TOKEN_SECRET_BYTES} random bytes"
        match = re.fullmatch(r"([A-Za-z0-9_.-]{1,64}):([A-Za-z0-9_-]+)=*", text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(allowed)
        kid, encoded = match.groups()
        try:
            secret = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        except binascii.Error:
            raise ValueError(allowed) from None
        if len(secret) < _TOKEN_SECRET_BYTES:
            raise ValueError(allowed)
        return cls(kid, secret)

    def __str__(self) -> str:
        return f"{self.kid}:{_MASK}"


def _origin(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[a-z0-9.:\[\]_-]+", text):
        raise ValueError("must be origins as browsers send them, lower case, without a path: https://chat.example.org")
    return text


def _database_url(text: str) -> str:
    allowed = "must be postgresql://user:password@host:port/database"
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError(allowed) from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError(allowed)
    return text


def _registration_code(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError("must be http://host:port or https://host, without a user")
    return text


def _bucket(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text):
        raise ValueError("must be a bucket's name: 3 to 63 of a-z, 0-9, . and -")
    return text


def _s3_prefix(text: str) -> str:
    if not re.fullmatch(r"([A-Za-z0-9_.-]+/)*", text) or ".." in text:
        raise ValueError("must be empty, or names that each end with a slash: orbital/media/")
    return text


HttpUrl = Annotated[str, AfterValidator(_http_url)]
Bucket = Annotated[str, AfterValidator(_bucket)]
S3Prefix = Annotated[str, AfterValidator(_s3_prefix)]
Origin = Annotated[str, AfterValidator(_origin)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
RegistrationCode = Annotated[str, AfterValidator(_registration_code)]
ParsedTokenKey = Annotated[TokenKey, BeforeValidator(TokenKey.parse)]


def _about(description: str, low: float | None = None, high: float | None = None, *, secret: bool = False) -> Any:
    return Field(description=description, ge=low, le=high, repr=not secret)


class Limits(BaseModel):
    """What `hello` tells every client, and what the relay holds it to."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    max_frame_bytes: Annotated[int, _about("largest message once authenticated", 16_384, 67_108_864)] = 1_048_576
    max_unauthenticated_frame_bytes: Annotated[
        int, _about("largest message before authentication", 1_024, 1_048_576)
    ] = 16_384
    max_in_flight: Annotated[int, _about("requests of a connection without an answer yet", 1, 65_536)] = 64
    max_frames_per_second: Annotated[
        int, _about("frames a second of a session, bursts of twice that; 0 is no limit", 0, 10_000_000)
    ] = 2_000
    max_title_bytes: Annotated[int, _about("a thread's encrypted title", 64, 1_048_576)] = 4_125
    max_body_bytes: Annotated[int, _about("an encrypted body", 64, 16_777_216)] = 65_565
    max_name_bytes: Annotated[int, _about("a group's encrypted name", 64, 1_048_576)] = 4_125
    max_wrap_bytes: Annotated[int, _about("a group key wrapped for one member", 256, 65_536)] = 1_024
    max_signal_bytes: Annotated[int, _about("a signal's payload; relays pass it on through NOTIFY", 64, 4_096)] = 1_280
    signals_per_second: Annotated[int, _about("signals a second of a session", 1, 100_000)] = 20
    max_members_per_group: Annotated[int, _about("members of a group", 1, 1_000_000)] = 1_000
    max_groups_per_user: Annotated[int, _about("groups that a user is in", 1, 1_000_000)] = 200
    max_subscriptions: Annotated[int, _about("groups that a session is subscribed to", 1, 1_000_000)] = 500
    max_invites_per_group: Annotated[int, _about("invites of a group that can still be used", 1, 100_000)] = 100
    max_cursors_per_user: Annotated[int, _about("named cursors of a user", 1, 100_000)] = 256
    max_backup_bytes: Annotated[int, _about("a user's encrypted key backup", 1_024, 67_108_864)] = 1_044_480
    max_media_bytes: Annotated[int, _about("a file", 0, 2**50)] = 1_073_741_824
    max_metadata_bytes: Annotated[int, _about("a file's encrypted metadata", 64, 1_048_576)] = 4_125
    media_chunk_bytes: Annotated[
        int, _about("bytes of a file in one frame, up or down: a multiple of 65,536", 65_536, 16_777_216)
    ] = 524_288
    media_window: Annotated[int, _about("chunks of an upload without an answer yet", 1, 65_536)] = 20
    max_uploads_per_user: Annotated[int, _about("uploads of a user under way", 1, 100_000)] = 100
    max_tokens_per_user: Annotated[int, _about("bot tokens of a user", 1, 100_000)] = 50
    max_sessions_per_user: Annotated[int, _about("sessions of a user; the oldest gives way", 1, 100_000)] = 100
    max_join_requests_per_group: Annotated[int, _about("knocks that wait at a group", 1, 100_000)] = 100
    page_limit: Annotated[int, _about("entries of a page, at most", 1, 1_000)] = 200
    rekeys_per_hour: Annotated[int, _about("unforced rekeys of a group an hour", 1, 1_000_000)] = 60
    knocks_per_hour: Annotated[int, _about("knocks of a user an hour", 1, 1_000_000)] = 20


class Settings(Limits):
    """Everything that can be set. `load` makes it from what the operator gave; tests may call it with keywords."""

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    listen_host: Annotated[str, _about("address that clients connect to")] = "127.0.0.1"
    listen_port: Annotated[int, _about("port that clients connect to; 0 picks a free one", 0, 65_535)] = 8_765
    operators_host: Annotated[str, _about("address of metrics and health")] = "127.0.0.1"
    operators_port: Annotated[int, _about("port of metrics and health; 0 picks a free one", 0, 65_535)] = 9_765
    tls_cert: Annotated[FilePath | None, _about("PEM file with the certificate chain; goes with tls_key")] = None
    tls_key: Annotated[FilePath | None, _about("PEM file with the certificate's private key")] = None

    data_dir: Annotated[Path, _about("where the embedded database and generated keys are kept")] = Path(".data")
    database_url: Annotated[
        DatabaseUrl | None, _about("PostgreSQL of the operator's; not set: the embedded one", secret=True)
    ] = None
    listener_database_url: Annotated[
        DatabaseUrl | None, _about("the same database around a pooler, for LISTEN", secret=True)
    ] = None

    log_level: Annotated[Literal["debug", "info", "warning", "error"], _about("least level that is logged")] = "info"
    log_format: Annotated[
        Literal["auto", "console", "json"], _about("auto: console on a terminal, JSON lines otherwise")
    ] = "auto"

    origins: Annotated[tuple[Origin, ...], _about("browser origins that may connect; empty: no browser")] = ()
    allow_no_origin: Annotated[bool, _about("whether clients that send no Origin (native ones) may connect")] = True
    trusted_proxies: Annotated[
        tuple[IPvAnyNetwork, ...], _about("networks of proxies whose X-Forwarded-For is believed")
    ] = ()
    connections_max: Annotated[int, _about("connections of this relay", 1, 10_000_000)] = 10_000
    connections_per_address: Annotated[int, _about("connections from one address", 1, 10_000_000)] = 1_000
    unauthenticated_max: Annotated[int, _about("connections that have not authenticated yet", 1, 10_000_000)] = 1_000

    registration: Annotated[
        Literal["open", "code", "closed"], _about("who may register: anyone, who knows registration_code, nobody")
    ] = "open"
    registration_code: Annotated[
        RegistrationCode | None, _about("what newcomers must know where registration is code", secret=True)
    ] = None
    token_keys: Annotated[
        tuple[ParsedTokenKey, ...] | None,
        _about("kid:base64url-secret, the first signs, all verify; not set: made and kept in data_dir", secret=True),
    ] = None
    access_token_ttl_s: Annotated[int, _about("life of an access token", 1, 86_400)] = 900
    refresh_token_ttl_s: Annotated[int, _about("life of a refresh token", 1, _A_YEAR_S)] = 2_592_000
    bcrypt_threads: Annotated[int, _about("threads that hash passwords", 1, 64)] = 2
    bcrypt_queue: Annotated[int, _about("password hashes that may wait for a thread", 1, 100_000)] = 64
    login_attempts_free: Annotated[int, _about("wrong passwords before logins are slowed", 1, 1_000)] = 5
    login_backoff_base_s: Annotated[float, _about("first wait after that; doubles with each failure", 0, 3_600)] = 1
    login_backoff_max_s: Annotated[float, _about("longest wait between logins", 0, 86_400)] = 900
    invite_attempts_per_minute: Annotated[
        int, _about("tries of invite codes a minute, of a user and of an address", 1, 1_000_000)
    ] = 10
    registrations_per_hour_per_address: Annotated[
        int, _about("accounts that one address may register an hour; 0 is no limit", 0, 1_000_000)
    ] = 100

    pool_min: Annotated[int, _about("database connections kept open", 0, 1_000)] = 2
    pool_max: Annotated[int, _about("database connections at most", 1, 1_000)] = 10
    pool_idle_s: Annotated[float, _about("seconds after which an idle database connection is closed", 0, 86_400)] = 30
    pool_connect_timeout_s: Annotated[float, _about("limit for connecting to the database", 0.05, 300)] = 2
    statement_timeout_s: Annotated[float, _about("limit for one statement", 0.05, 300)] = 5
    acquire_timeout_s: Annotated[float, _about("limit for getting a connection from the pool", 0.05, 300)] = 5

    media_store: Annotated[Literal["local", "s3"], _about("where files are kept: in media_dir, or in an S3 bucket")] = (
        "local"
    )
    media_dir: Annotated[
        Path | None, _about("folder of files; several relays share one; not set: media in data_dir")
    ] = None
    s3_endpoint: Annotated[
        HttpUrl | None, _about("base URL of an S3-compatible service; not set: Amazon's for s3_region")
    ] = None
    s3_public_endpoint: Annotated[
        HttpUrl | None, _about("the same as clients reach it, for presigned URLs; not set: s3_endpoint")
    ] = None
    s3_region: Annotated[str, _about("region that requests are signed for")] = "us-east-1"
    s3_bucket: Annotated[Bucket | None, _about("bucket, which must exist; where media_store is s3")] = None
    s3_prefix: Annotated[S3Prefix, _about("what the names of all objects begin with")] = ""
    s3_access_key: Annotated[str | None, _about("access key id; not set: found as the AWS SDK does")] = None
    s3_secret_key: Annotated[str | None, _about("secret of s3_access_key", secret=True)] = None
    s3_path_style: Annotated[bool, _about("whether the bucket is in the path, not in the host name")] = True
    s3_part_bytes: Annotated[
        int, _about("bytes that are gathered for one part of an object; S3 wants 5 MiB at least", 5_242_880, 2**32)
    ] = 5_242_880
    s3_url_ttl_s: Annotated[int, _about("life of a presigned URL; 0: clients get none", 0, 604_800)] = 300
    s3_cache_bytes: Annotated[int, _about("bytes that were read ahead of downloads, of all files", 0, 2**36)] = (
        18_874_368
    )
    media_timeout_s: Annotated[float, _about("limit for one request to the store of files", 0.05, 600)] = 15
    media_concurrency: Annotated[int, _about("requests to the store of files at once", 1, 1_000)] = 8
    media_memory_bytes: Annotated[int, _about("bytes of uploads that wait for the store", 1_048_576, 2**36)] = (
        134_217_728
    )
    upload_ttl_s: Annotated[int, _about("time without progress after which an upload is forgotten", 1, _A_YEAR_S)] = (
        86_400
    )
    media_sweep_ms: Annotated[int, _about("between two looks for expired files and blobs to delete", 10, 3_600_000)] = (
        10_000
    )

    lanes: Annotated[int, _about("append lanes, each with a database connection of its own", 1, 64)] = 2
    max_batch: Annotated[int, _about("appends in one transaction", 1, 4_096)] = 256
    lane_queue: Annotated[int, _about("appends that may wait in a lane", 1, 1_000_000)] = 8_192
    lane_queue_bytes: Annotated[int, _about("bytes of appends that may wait in a lane, and one append", 1, 2**36)] = (
        67_108_864
    )
    ring_bytes: Annotated[int, _about("recent events kept for fan-out, all groups together", 0, 2**36)] = 67_108_864
    outbox_bytes: Annotated[int, _about("outgoing bytes that may wait for one session", 4_096, 2**30)] = 1_048_576
    slow_consumer_ms: Annotated[int, _about("time without a byte drained before a cut", 10, 600_000)] = 15_000
    sweep_ms: Annotated[int, _about("between two looks at the heads of subscribed groups", 10, 600_000)] = 1_000
    echo_ms: Annotated[int, _about("between two notifications that the listener sends itself", 10, 600_000)] = 2_000
    auth_timeout_ms: Annotated[int, _about("time that a connection has to authenticate", 10, 600_000)] = 10_000
    heartbeat_ms: Annotated[int, _about("between two pings of a connection", 10, 3_600_000)] = 30_000
    no_pong_ms: Annotated[int, _about("silence after a ping before a connection is cut", 10, 3_600_000)] = 20_000
    drain_timeout_ms: Annotated[int, _about("limit for an orderly stop", 0, 3_600_000)] = 10_000
    replay_concurrency: Annotated[int, _about("statements at once that read for replays", 1, 1_000)] = 4

    @cached_property
    def limits(self) -> Limits:
        """The part that clients are told in `hello`."""
        return Limits(**{name: getattr(self, name) for name in Limits.model_fields})

    @property
    def postgres_dir(self) -> Path:
        """Where the embedded database lives."""
        return self.data_dir / "postgres"

    @property
    def local_media_dir(self) -> Path:
        """Where files are kept, where that is no bucket."""
        return self.media_dir or self.data_dir / "media"

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: object, info: ValidationInfo) -> object:
        """Split lists that came as text; keep `true` from passing as the number 1."""
        shape = _shapes()[info.field_name or ""]
        if shape.get("type") == "array" and isinstance(value, str):
            return re.findall(r"[^,\s]+", value)
        if shape.get("type") in ("integer", "number") and isinstance(value, bool):
            raise ValueError(_allowed(info.field_name or ""))
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        """Refuse values that are each allowed but not beside one another."""
        for holds, key, allowed in _relations(self):
            if not holds:
                raise ValueError(f"{key} = {_shown(self, key)}: {allowed}")
        return self


class _Relation(NamedTuple):
    holds: bool
    key: str
    allowed: str


def _relations(s: Settings) -> Iterator[_Relation]:
    room = s.max_frame_bytes - _FRAME_ROOM_BYTES
    fits = f"must leave {_FRAME_ROOM_BYTES} bytes of max_frame_bytes = {s.max_frame_bytes}"
    kids = [key.kid for key in s.token_keys or ()]
    yield _Relation((s.tls_cert is None) == (s.tls_key is None), "tls_cert", "must be given together with tls_key")
    yield _Relation(
        s.registration != "code" or s.registration_code is not None,
        "registration_code",
        "must be given where registration = code",
    )
    yield _Relation(
        s.database_url is None or bool(kids),
        "token_keys",
        "must be given beside database_url, the same on every relay of that database",
    )
    yield _Relation(s.token_keys != (), "token_keys", "must hold at least one key")
    yield _Relation(len(set(kids)) == len(kids), "token_keys", "must not use a kid twice")
    yield _Relation(
        s.database_url is not None or s.listener_database_url is None,
        "listener_database_url",
        "must be given only together with database_url",
    )
    yield _Relation(s.lanes < s.pool_max, "lanes", f"must be below pool_max = {s.pool_max}")
    yield _Relation(
        s.pool_min <= s.pool_max - s.lanes,
        "pool_min",
        f"must be at most pool_max - lanes = {s.pool_max - s.lanes}: each lane has one of the connections",
    )
    yield _Relation(
        s.max_unauthenticated_frame_bytes <= s.max_frame_bytes,
        "max_unauthenticated_frame_bytes",
        f"must be at most max_frame_bytes = {s.max_frame_bytes}",
    )
    yield _Relation(s.max_title_bytes + s.max_body_bytes <= room, "max_body_bytes", f"with max_title_bytes, {fits}")
    yield _Relation(s.max_backup_bytes <= room, "max_backup_bytes", fits)
    yield _Relation(
        s.login_backoff_base_s <= s.login_backoff_max_s,
        "login_backoff_base_s",
        f"must be at most login_backoff_max_s = {s.login_backoff_max_s:g}",
    )
    yield from _media_relations(s, room)


def _media_relations(s: Settings, room: int) -> Iterator[_Relation]:
    in_flight = min(s.media_window, s.max_in_flight) * s.media_chunk_bytes
    fits = f"must leave {_FRAME_ROOM_BYTES} bytes of max_frame_bytes = {s.max_frame_bytes}"
    yield _Relation(
        s.media_chunk_bytes % SEGMENT_BYTES == 0, "media_chunk_bytes", f"must be a multiple of {SEGMENT_BYTES}"
    )
    yield _Relation(s.media_chunk_bytes <= room, "media_chunk_bytes", fits)
    yield _Relation(s.max_metadata_bytes <= room, "max_metadata_bytes", fits)
    yield _Relation(
        s.media_memory_bytes >= in_flight,
        "media_memory_bytes",
        f"must hold what one upload may send without an answer, which is {in_flight}",
    )
    yield _Relation(
        s.media_store != "s3" or s.s3_bucket is not None, "s3_bucket", "must be given where media_store = s3"
    )
    yield _Relation(
        s.media_store != "s3" or in_flight >= 2 * s.s3_part_bytes,
        "s3_part_bytes",
        f"must be at most half of what one upload may send without an answer, which is {in_flight}",
    )
    yield _Relation(
        (s.s3_access_key is None) == (s.s3_secret_key is None),
        "s3_access_key",
        "must be given together with s3_secret_key",
    )


class _Given(NamedTuple):
    value: object
    source: str


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Merge flags (by setting's name; None is "not given"), environment, file and defaults, or raise ConfigError.

    `environ` is the process's own unless given. An empty variable counts as not set. Without `file`, ORBITAL_CONFIG
    names the TOML file; without that, `orbital.toml` is read where it exists.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    given: dict[str, _Given] = {}
    given |= _from_file(file, environ, problems)
    given |= _from_environment(environ, problems)
    given |= _from_flags(flags or {}, problems)
    if problems:
        raise ConfigError(problems)
    try:
        settings = Settings.model_validate({key: value for key, (value, _) in given.items()})
    except ValidationError as error:
        raise ConfigError(_problems(error, given)) from None
    settings._sources.update({key: source for key, (_, source) in given.items()})
    return settings


def adopt(running: Settings, given: Settings, keys: Collection[str]) -> Settings:
    """The running settings, with what is given for these keys. Raise ConfigError where that doesn't fit together."""
    origins = {key: given if key in keys else running for key in _fields()}
    values = {key: getattr(origin, key) for key, origin in origins.items()}
    sources = {key: origin._sources[key] for key, origin in origins.items() if key in origin._sources}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        shown = {key: _Given(value, sources.get(key, "default")) for key, value in values.items()}
        raise ConfigError(_problems(error, shown)) from None
    settings._sources.update(sources)
    return settings


class Described(NamedTuple):
    """One setting in force, for people to read."""

    key: str
    shown: str
    source: str


def describe(settings: Settings) -> list[Described]:
    """List every setting in force with where it came from; secrets are masked."""
    return [Described(key, _shown(settings, key), settings._sources.get(key, "default")) for key in _fields()]


class Documented(NamedTuple):
    """One setting that there is, for people to read."""

    key: str
    default: str
    description: str
    allowed: str


def reference() -> list[Documented]:
    """List every setting there is."""
    return [_documented(key) for key in _fields()]


def _documented(key: str) -> Documented:
    field = Settings.model_fields[key]
    allowed = _allowed(key).removeprefix("must be ").removesuffix(f": {field.description}")
    return Documented(key, _text(field.default), str(field.description), allowed)


def warnings(settings: Settings) -> list[str]:
    """Name what is allowed but rarely meant, a sentence each."""
    found = []
    plain = settings.tls_cert is None and not settings.trusted_proxies
    if plain and not _is_loopback(settings.listen_host):
        found.append(
            f"listen_host = {settings.listen_host}: passwords and tokens cross the network unencrypted;"
            " set tls_cert and tls_key, or trusted_proxies where a proxy does TLS"
        )
    if not _is_loopback(settings.operators_host):
        found.append(f"operators_host = {settings.operators_host}: whoever reaches it reads the metrics")
    return found


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _from_flags(flags: Mapping[str, object], problems: list[str]) -> dict[str, _Given]:
    given = {}
    for key, value in flags.items():
        source = "command line"
        if key not in _fields():
            problems.append(f"{_unknown(key, _fields())} ({source})")
        elif value is not None:
            given[key] = _Given(value, source)
    return given


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, _Given]:
    names = {_PREFIX + key.upper(): key for key in _fields()}
    files = {f"{_PREFIX}{key.upper()}_FILE": key for key in _fields() if _is_secret(key)}
    known = {_CONFIG, *names, *files}
    problems += [
        f"{_unknown(name, known)} (environment)"
        for name in sorted(environ)
        if name.startswith(_PREFIX) and name not in known | _CLIENTS
    ]
    # Later ones win: a shared DATABASE_URL gives way to what names Orbital.
    given: dict[str, _Given] = {}
    for name, key in (_ALIASES | files | names).items():
        if not (text := environ.get(name)):
            continue
        source = f"environment {name}"
        if key in given and name.startswith(_PREFIX) and given[key].source.endswith("_FILE"):
            problems.append(f"{source}: must not be given beside {name}_FILE")
        elif name not in files:
            given[key] = _Given(text, source)
        elif (secret := _read_secret(Path(text), source, problems)) is not None:
            given[key] = _Given(secret, source)
    return given


def _read_secret(path: Path, source: str, problems: list[str]) -> str | None:
    try:
        return path.read_text().strip()
    except OSError as error:
        problems.append(f"{source} = {path}: must be a readable file ({error.strerror})")
    except UnicodeDecodeError:
        problems.append(f"{source} = {path}: must be a file of UTF-8 text")
    return None


def _from_file(file: Path | None, environ: Mapping[str, str], problems: list[str]) -> dict[str, _Given]:
    if file is None and (named := environ.get(_CONFIG)):
        file = Path(named)
    if file is None and not _DEFAULT_FILE.exists():
        return {}
    file = file or _DEFAULT_FILE
    try:
        table = tomllib.loads(file.read_text())
    except OSError as error:
        problems.append(f"config = {file}: must be a readable TOML file ({error.strerror})")
        return {}
    except ValueError as error:
        problems.append(f"config = {file}: must be TOML: {' '.join(str(error).split())}")
        return {}
    problems += [f"{_unknown(key, _fields())} ({file})" for key in table if key not in _fields()]
    return {key: _Given(value, str(file)) for key, value in table.items() if key in _fields()}


def _fields() -> list[str]:
    """Every setting's name: the relay's own first, then the limits that clients are told."""
    return sorted(Settings.model_fields, key=lambda name: name in Limits.model_fields)


def _is_secret(key: str) -> bool:
    return not Settings.model_fields[key].repr


def _unknown(name: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, never its value: it may be a secret under a misspelt name."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else "")


def _problems(error: ValidationError, given: Mapping[str, _Given]) -> list[str]:
    """One line for each key that is wrong, the first thing wrong with it."""
    lines: dict[str, str] = {}
    for found in error.errors(include_url=False):
        own = str(found["ctx"]["error"]) if found["type"] == "value_error" else None
        if not found["loc"]:
            lines.setdefault("", own or found["msg"])
            continue
        key = str(found["loc"][0])
        value = _MASK if _is_secret(key) else _text(found["input"])
        lines.setdefault(key, f"{key} = {value} ({given[key].source}): {own or _allowed(key)}")
    return list(lines.values())


@cache
def _shapes() -> Mapping[str, Mapping[str, Any]]:
    """The JSON Schema of each setting, of what it may be beside null where it is optional."""
    shapes = Settings.model_json_schema()["properties"]
    return {key: shape.get("anyOf", [shape])[0] for key, shape in shapes.items()}


def _allowed(key: str) -> str:
    shape, description = _shapes()[key], Settings.model_fields[key].description
    if "enum" in shape:
        return f"must be one of {', '.join(shape['enum'])}"
    if shape.get("format") == "file-path":
        return "must be a file that exists"
    match shape.get("type"):
        case "integer":
            return f"must be a whole number from {shape['minimum']} to {shape['maximum']}"
        case "number":
            return f"must be a number from {shape['minimum']} to {shape['maximum']}"
        case "boolean":
            return "must be true or false"
        case kind:
            return f"must be {'a list' if kind == 'array' else 'text'}: {description}"


def _shown(settings: Settings, key: str) -> str:
    value = getattr(settings, key)
    if value is None or not _is_secret(key) or key == "token_keys":
        return _text(value)  # a TokenKey masks itself
    return _masked_url(value) if key.endswith("_url") else _MASK


def _text(value: object) -> str:
    """One line, as an operator would write it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    text = str(value)
    return text if text.isprintable() else repr(text)


def _masked_url(url: str) -> str:
    """Show which server and database, nothing that may open them."""
    parts = urlsplit(url)
    if "@" in parts.path + parts.query + parts.fragment:
        return _MASK  # a password with an unescaped / ? or # has been split in its middle
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{_MASK + '@' if '@' in parts.netloc else ''}{host}{parts.path}"
