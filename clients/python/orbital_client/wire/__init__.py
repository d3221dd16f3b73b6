"""The client of opaque bytes: connect, post, follow, resume without a hole. What it carries, others have sealed.

client      Client: the account, groups, events          groups      Group: what its members do in it
session     one login kept alive: tokens, reconnecting   connection  one WebSocket
feed        from the socket to `events()`                inbox       the bounded queue between, and its items
following   which groups are subscribed to               control     statements: built, signed, sent
ledger      chain, roster and key epoch as verified      outgoing    what is uploaded, kept until it is durable
uploads     a file's way up                              downloads   a file's way down
transfers   how much of files is on its way at once      sealing     the seam for their encryption
bookmarks   how far the application has read             stores      where tokens and cursors are kept
backoff     how long to wait
"""

from orbital_client.errors import (
    AccountRefused,
    AdmissionNeeded,
    BadAnswer,
    BadRequest,
    ChainBroken,
    ChainFork,
    ClientClosed,
    Closed,
    ConnectionLost,
    FutureCursor,
    LogBroken,
    MediaCorrupt,
    NotAuthenticated,
    NotFound,
    OrbitalError,
    OutOfDate,
    Refused,
    RequestFailed,
    RequestTimeout,
    TryLater,
)
from orbital_client.identity import Identity, thumbprint, uuid7
from orbital_client.links import InviteLink
from orbital_client.wire.client import Client
from orbital_client.wire.groups import NO_KEY, Group, Posted
from orbital_client.wire.inbox import Disconnected, Item, Reconnected
from orbital_client.wire.ledger import statement_of
from orbital_client.wire.sealing import Sealing
from orbital_client.wire.stores import (
    CursorStore,
    FileCursors,
    FileTokens,
    MemoryCursors,
    MemoryTokens,
    Tokens,
    TokenStore,
)
from orbital_client.wire.uploads import MediaFacts, PostedMedia
from orbital_protocol.codes import ErrorCode, History, Kind, Role
from orbital_protocol.frames import Cursor, CursorMoved, Event, GroupGone, JoinRequested, Live, Signal

__all__ = [
    "NO_KEY",
    "AccountRefused",
    "AdmissionNeeded",
    "BadAnswer",
    "BadRequest",
    "ChainBroken",
    "ChainFork",
    "Client",
    "ClientClosed",
    "Closed",
    "ConnectionLost",
    "Cursor",
    "CursorMoved",
    "CursorStore",
    "Disconnected",
    "ErrorCode",
    "Event",
    "FileCursors",
    "FileTokens",
    "FutureCursor",
    "Group",
    "GroupGone",
    "History",
    "Identity",
    "InviteLink",
    "Item",
    "JoinRequested",
    "Kind",
    "Live",
    "LogBroken",
    "MediaCorrupt",
    "MediaFacts",
    "MemoryCursors",
    "MemoryTokens",
    "NotAuthenticated",
    "NotFound",
    "OrbitalError",
    "OutOfDate",
    "Posted",
    "PostedMedia",
    "Reconnected",
    "Refused",
    "RequestFailed",
    "RequestTimeout",
    "Role",
    "Sealing",
    "Signal",
    "TokenStore",
    "Tokens",
    "TryLater",
    "statement_of",
    "thumbprint",
    "uuid7",
]
