"""Client for Orbital relays: groups, threads and people; what is sent is sealed, what is shown is verified.

client      Client: the account, groups, people          group       Group: what its members do in it
messages    Message, and what else happens               wording     changes of a group, in words
intake      from the connection to the replicas          replica     a group's verified log, and its keys
timeline    reading: followed, or fetched and checked    sending     sealed, sent, held to the acknowledgement
keeper      what is done by itself                       rekeying    a new key for a group
account     keys, their backup, a second device          people      names, and keys that are known
bots        members that are programs                    cli         the command `orbital`
chat        groups in a full-screen window               posting     threads, replies, files, acts
export      a history as a file that can be checked      deep        a whole log, verified again
store       what must not be forgotten (`store.sql`)     pulse       wake-ups
trust       what members check, without I/O              crypto      what is sealed under which key
wire        connections and requests, of opaque bytes    links       invite links
identity    a user's keys                                files       private files, replaced whole
errors      all that is raised
"""

from orbital_client.bots import Bot
from orbital_client.client import Client, GroupEntered, Notice
from orbital_client.errors import (
    AccountRefused,
    AdmissionNeeded,
    BackupRolledBack,
    CannotOpen,
    CannotPost,
    ClientClosed,
    Closed,
    KeyChanged,
    LogBroken,
    MissingKey,
    NotAuthenticated,
    NotFound,
    OrbitalError,
    Refused,
    Rejected,
    RequestFailed,
    StoreDamaged,
    StoreInUse,
    Withheld,
    WrongPassphrase,
)
from orbital_client.group import Group, Knock, Member
from orbital_client.links import InviteLink
from orbital_client.messages import Erased, GroupChange, Item, Message, Suspicious, Update
from orbital_client.people import Person
from orbital_client.store import Store
from orbital_client.trust.findings import Finding, Flaw
from orbital_client.trust.signals import Heard
from orbital_client.wire import Disconnected, Reconnected
from orbital_protocol.codes import Role
from orbital_protocol.frames import Cursor

__all__ = [
    "AccountRefused",
    "AdmissionNeeded",
    "BackupRolledBack",
    "Bot",
    "CannotOpen",
    "CannotPost",
    "Client",
    "ClientClosed",
    "Closed",
    "Cursor",
    "Disconnected",
    "Erased",
    "Finding",
    "Flaw",
    "Group",
    "GroupChange",
    "GroupEntered",
    "Heard",
    "InviteLink",
    "Item",
    "KeyChanged",
    "Knock",
    "LogBroken",
    "Member",
    "Message",
    "MissingKey",
    "NotAuthenticated",
    "NotFound",
    "Notice",
    "OrbitalError",
    "Person",
    "Reconnected",
    "Refused",
    "Rejected",
    "RequestFailed",
    "Role",
    "Store",
    "StoreDamaged",
    "StoreInUse",
    "Suspicious",
    "Update",
    "Withheld",
    "WrongPassphrase",
]
