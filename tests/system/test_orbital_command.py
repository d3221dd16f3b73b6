"""The command `orbital`, as processes of its own, against a whole relay: what people do with it, what it refuses."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from orbital_client import Store
from orbital_client.errors import ExportDamaged
from orbital_client.export import check
from orbital_protocol.codes import Kind
from tests import forks
from tests.relays import RunningRelay, running_relay
from tests.system.secrets import PASSPHRASE

pytestmark = pytest.mark.timeout(120)

LIMIT_S = 40
# Whoever starts tests in the background of a shell has them ignore Ctrl-C, which processes inherit.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
PROGRAM = f"{HEARS_CTRL_C}from orbital_client.cli import main; main()"
ESCAPE = "\x1b[31m"
CHAINED = {"seq", "hash", "previous_hash", "kind", "group_id", "object_id", "actor_id", "key_epoch", "created_at"} | {
    *("parent_id", "content_hash", "field_hashes", "statement", "signature")
}


@dataclass
class Person:
    """Somebody at a terminal, with a store of their own."""

    store: Path
    environment: dict[str, str] = field(default_factory=dict)

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROGRAM,
            *arguments,
            env=self._variables(),
            cwd=self.store.parent,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    def _variables(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ORBITAL_")}
        return clean | {"ORBITAL_STORE": str(self.store), "TERM": "dumb", **self.environment}

    async def run(self, *arguments: str, stdin: str = "") -> forks.Ran:
        """Run a command to its end."""
        return await forks.ran(
            "orbital", arguments, environment=self._variables(), folder=self.store.parent, stdin=stdin, limit_s=LIMIT_S
        )

    async def do(self, *arguments: str, stdin: str = "") -> Any:
        """Run a command that works; what it says, as JSON."""
        ran = await self.run("--json", *arguments, stdin=stdin)
        assert (ran.status, ran.err) == (0, ""), ran
        return ran.json()

    async def fail(self, *arguments: str, status: int = 1, stdin: str = "") -> str:
        """Run a command that is refused: one line, no traceback."""
        ran = await self.run(*arguments, stdin=stdin)
        assert ran.status == status, ran
        assert "Traceback" not in ran.err
        if status == 1:
            assert ran.err.startswith("orbital: ") and ran.err.count("\n") == 1, ran.err
        return ran.err.strip()


def person(folder: Path, name: str) -> Person:
    home = folder / name
    home.mkdir()
    return Person(home / "client.db", {"ORBITAL_PASSPHRASE": PASSPHRASE})


@asynccontextmanager
async def two_people(dsn: str, folder: Path, **settings: Any) -> AsyncIterator[tuple[RunningRelay, Person, Person]]:
    """Ann and bob, registered."""
    async with running_relay(dsn, **settings) as relay:
        ann, bob = person(folder, "ann"), person(folder, "bob")
        await asyncio.gather(ann.do("register", relay.url, "ann"), bob.do("register", relay.url, "bob"))
        yield relay, ann, bob


async def in_a_group(ann: Person, bob: Person) -> None:
    await ann.do("create", "Book club")
    link = (await ann.do("invite", "Book club", "--expires", "1h", "--uses", "1"))["link"]
    assert (await bob.do("join", link))["name"] == "Book club"


# ── the walk ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_people_talk_share_and_verify(migrated_database: str, tmp_path: Path) -> None:
    async with two_people(migrated_database, tmp_path) as (_, ann, bob):
        await in_a_group(ann, bob)
        assert [group["name"] for group in await bob.do("groups")] == ["Book club"]

        thread = await ann.do("post", "Book club", "Ubik", "-", stdin="Shall we\nread it?\n")
        assert thread["text"] == "Shall we\nread it?"
        follower = await bob.start("follow", "Book club", "--count", "1", "--json")
        assert follower.stderr is not None
        assert await follower.stderr.readline() == b"following Book club; Ctrl-C ends it\n"
        reply = await ann.do("reply", "Book club", "Ubik", f"{ESCAPE}Here I am.")
        async with asyncio.timeout(LIMIT_S):
            out, _ = await follower.communicate()
        followed = json.loads(out)
        assert (followed["event"], followed["id"], followed["author"]) == ("message", reply["id"], "ann")

        await talk_about(ann, bob, thread["id"], reply["id"])
        await share(ann, bob, tmp_path)
        await verify_each_other(ann, bob)
        await asyncio.gather(export_and_check(bob, tmp_path), follow_then_look_for_wrongs(ann))


async def talk_about(ann: Person, bob: Person, thread_id: str, reply_id: str) -> None:
    shown = (await bob.run("history", "Book club")).out
    assert "Shall we\n    read it?" in shown
    assert "\x1b" not in shown and r"\x1b[31mHere I am." in shown
    assert [one["title"] for one in await bob.do("threads", "Book club")] == ["Ubik"]
    reacted = await bob.do("react", "Book club", reply_id[:20], "👍")
    assert list(reacted["reactions"]) == ["👍"]
    assert (await ann.do("edit", "Book club", reply_id, "Here I stand."))["text"] == "Here I stand."
    assert (await ann.do("pin", "Book club", thread_id))["is_pinned"]
    assert "only its author edits" in await bob.fail("edit", "Book club", reply_id, "Not I.")
    assert {(one["username"], one["role"]) for one in await bob.do("members", "Book club")} == {
        ("ann", "owner"),
        ("bob", "member"),
    }


async def share(ann: Person, bob: Person, folder: Path) -> None:
    source = folder / "map of mars.txt"
    source.write_bytes(b"mars " * 50_000)
    [sent] = await ann.do("send", "Book club", "Ubik", str(source), "--caption", "look")
    assert (sent["file"]["name"], sent["text"]) == ("map of mars.txt", "look")
    fetched = await bob.do("fetch", "Book club", sent["id"])
    assert fetched["path"] == "map of mars.txt"
    assert (bob.store.parent / "map of mars.txt").read_bytes() == source.read_bytes()
    assert "is there already" in await bob.fail("fetch", "Book club", sent["id"])
    await ann.do("delete", "Book club", sent["id"])
    assert "no longer there" in await bob.fail("fetch", "Book club", sent["id"], "--force")


async def verify_each_other(ann: Person, bob: Person) -> None:
    seen = await ann.do("verify", "bob")
    assert seen["person"]["fingerprint"] == (await bob.do("whoami"))["fingerprint"]
    assert seen["fingerprint"] == (await ann.do("whoami"))["fingerprint"]
    assert not seen["person"]["is_verified"]
    assert (await ann.do("verify", "bob", "--yes-it-matches"))["person"]["is_verified"]
    assert [one["is_verified"] for one in await ann.do("members", "Book club")] == [False, True]
    found = await asyncio.gather(*(one.do("verify", "--deep", "Book club") for one in (ann, bob)))
    assert [one["is_sound"] for one in found] == [True, True]
    assert found[0]["code"] == found[1]["code"]
    assert (found[0]["opened"], found[0]["erased"], found[0]["without_key"]) == (5, 1, 0)
    assert (found[0]["keys"], found[0]["epochs"]) == (1, 1)


async def export_and_check(bob: Person, folder: Path) -> None:
    file = folder / "club.jsonl"
    written = await bob.do("export", "Book club", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["seq"] for line in lines[:-1]] == list(range(1, written["events"] + 1))
    assert lines[-1]["hash"] == lines[-2]["hash"] == written["hash"]
    assert "Here I stand." in [line["act"]["text"] for line in lines if line.get("act", {}).get("act") == "edit"]
    assert "is there already" in await bob.fail("export", "Book club", str(file))
    nobody = Person(folder / "nobody.db")
    assert (await nobody.do("export", "--check", str(file)))["events"] == written["events"]
    text = file.read_text()
    assert text.count("Shall we") == 1
    file.write_text(text.replace("Shall we", "Shall ye"))
    assert "changed since the export" in await nobody.fail("export", "--check", str(file))
    find_each_change(file, text)


def find_each_change(file: Path, text: str) -> None:
    """Whatever is changed in any line, left out, doubled or moved is found: what is hashed or signed, even if whoever
    changed it has made the last line fit."""
    lines = text.splitlines(keepends=True)
    for at, line in enumerate(lines):
        for name, value in json.loads(line).items():
            forged = [*lines[:at], as_line({**json.loads(line), name: changed(value)}), *lines[at + 1 :]]
            damaged(file, forged)
            if name in CHAINED and at < len(lines) - 1:
                damaged(file, sealed_again(forged))
        damaged(file, [*lines[:at], *lines[at + 1 :]])
        damaged(file, [*lines[: at + 1], *lines[at:]])
    damaged(file, sealed_again([lines[1], lines[0], *lines[2:]]))
    damaged(file, sealed_again([*lines[:-2], lines[-1]]))
    file.write_text("".join(sealed_again(lines)))
    assert file.read_text() == text
    check(file)


def sealed_again(lines: list[str]) -> list[str]:
    """The lines with a last one that has the digest for them."""
    summary = json.loads(lines[-1]) | {"digest": "0" * 64}
    before = sha256("".join(lines[:-1]).encode()).digest()
    digest = sha256(before + as_line(summary).rstrip("\n").encode()).hexdigest()
    return [*lines[:-1], as_line(summary | {"digest": digest})]


def as_line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def changed(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return ("1" if value[:1] == "0" else "0") + value[1:]
        case list():
            return value[:-1] if value else ["0" * 64]
        case _:
            return {}


def damaged(file: Path, lines: list[str]) -> None:
    file.write_text("".join(lines))
    with pytest.raises(ExportDamaged):
        check(file)


async def follow_then_look_for_wrongs(ann: Person) -> None:
    await find_what_the_store_has_wrong(ann)


async def test_follow_ends_at_ctrl_c(migrated_database: str, tmp_path: Path) -> None:
    async with two_people(migrated_database, tmp_path) as (_, ann, _bob):
        await ann.do("create", "Book club")
        await follow_until_ctrl_c(ann)


async def follow_until_ctrl_c(ann: Person) -> None:
    follower = await ann.start("follow", "Book club", "--from-start")
    assert follower.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        assert await follower.stdout.readline() == b"ann created the group\n"
        follower.send_signal(signal.SIGINT)
        _, err = await follower.communicate()
    assert (follower.returncode, err) == (0, b"following Book club; Ctrl-C ends it\n")


async def find_what_the_store_has_wrong(ann: Person) -> None:
    """A store in which a post counts no longer is not what the log makes of it."""
    for counts, status in ((0, 1), (1, 0)):
        with sqlite3.connect(ann.store) as db:
            db.execute("UPDATE events SET counts = ? WHERE kind = ?", (counts, Kind.THREAD_POSTED))
        db.close()
        ran = await ann.run("verify", "--deep", "Book club")
        assert (ran.status, "is stored as another one" in ran.out) == (status, status == 1), ran


# ── coming and going ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_knocking_roles_and_leaving(migrated_database: str, tmp_path: Path) -> None:
    async with two_people(migrated_database, tmp_path) as (_, ann, bob):
        await ann.do("create", "Book club", "--no-history")
        code = (await ann.do("knocks", "Book club"))["code"]
        print_of_bob = (await bob.do("knock", code))["fingerprint"]
        assert [one["fingerprint"] for one in (await ann.do("knocks", "Book club"))["knocks"]] == [print_of_bob]
        await ann.do("deny", "Book club", "bob")
        waiting = await bob.start("knock", code, "--wait", "--json")
        while not (await ann.do("knocks", "Book club"))["knocks"]:
            await asyncio.sleep(0.1)
        assert (await ann.run("admit", "Book club", "bob", stdin="n\n")).status == 1
        await ann.do("admit", "Book club", "bob", "--yes")
        async with asyncio.timeout(LIMIT_S):
            out, err = await waiting.communicate()
        assert (waiting.returncode, json.loads(out)["name"]) == (0, "Book club"), err
        assert (await ann.do("rename", "Book club", "Reading"))["name"] == "Reading"
        assert (await ann.do("role", "Reading", "bob", "admin"))["role"] == "admin"
        assert "owner can't leave" in await ann.fail("leave", "Reading")
        await bob.do("leave", "Reading")
        assert await bob.do("groups") == []
        await ann.do("post", "Reading", "Alone")
        assert (await ann.do("verify", "--deep", "Reading"))["is_sound"]


async def test_the_account(migrated_database: str, tmp_path: Path) -> None:
    async with running_relay(migrated_database, registration="code", registration_code="let me in") as relay:
        ann = Person(tmp_path / "ann.db")
        assert "registration code" in await ann.fail("register", relay.url, "ann")
        made = await ann.do("register", relay.url, "ann", "--registration-code", "let me in")
        assert len(made["passphrase"].split(" ")) == 6
        assert "has the keys of ann" in await ann.fail("register", relay.url, "eve")
        assert "has the keys of ann" in await ann.fail("login", relay.url, "bob")
        new = tmp_path / "new"
        new.write_text(f"{PASSPHRASE}\n")
        old = Person(ann.store, {"ORBITAL_PASSPHRASE": made["passphrase"]})
        await old.do("passphrase", "--new-passphrase-file", str(new))
        second = Person(tmp_path / "second.db")
        wrong = await second.fail("login", relay.url, "ann", "--passphrase-file", "-", stdin=made["passphrase"])
        assert "no user of that name has this passphrase" in wrong
        assert "no passphrase" in await second.fail("login", relay.url, "ann")
        there = await second.do("login", relay.url, "ann", "--passphrase-file", str(new))
        assert there["fingerprint"] == made["fingerprint"]
        await ann.do("logout")
        assert f"orbital login {relay.url} ann" in await ann.fail("groups")
        assert (await ann.do("whoami"))["is_logged_in"] is False
        await ann.do("login", relay.url, "ann", "--passphrase-file", str(new))
        url = relay.url
    assert f"can't connect to {url}: no relay is listening there" in await ann.fail("groups")


async def test_what_it_refuses(tmp_path: Path) -> None:
    somebody = Person(tmp_path / "client.db", {"ORBITAL_PASSPHRASE": PASSPHRASE})
    assert "nobody has logged in here" in await somebody.fail("groups")
    assert not somebody.store.exists()
    assert "no relay is listening there" in await somebody.fail("register", "ws://127.0.0.1:1", "ann")
    with Store(somebody.store):
        assert "in use by another client" in await somebody.fail("whoami")
    somebody.store.write_bytes(b"no database at all, " * 100)
    assert "damaged" in await somebody.fail("whoami")
    missing = tmp_path / "missing"
    assert await somebody.fail("export", "--check", str(missing)) == f"orbital: {missing}: No such file or directory"
    wrong_usage = [
        ("register", "127.0.0.1", "ann"),
        ("invite", "Book club", "--expires", "soon"),
        ("join", "orbital:nothing"),
        ("role", "Book club", "bob", "king"),
        ("post", "Book club", ""),
        ("export",),
    ]
    await asyncio.gather(*(somebody.fail(*arguments, status=2) for arguments in wrong_usage))
    assert (await somebody.run("--version")).out.startswith("orbital ")
