"""The migrated schema held against the founding document's own DDL: each difference is listed here, with its reason.

The document is kept as it was at `docs/seed/database-schema.md`. Its statements are run as they stand, contradictions
included, in a database of their own; then the catalogues of both are compared for the eight tables that it names.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from asyncpg.exceptions import NotNullViolationError

from orbital_relay.store.pool import Connection
from tests.people import connected

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "seed" / "database-schema.md"

TABLES: Final = ("users", "groups", "members", "threads", "replies", "media", "media_downloads", "group_quotas")

# The embedded PostgreSQL has no contrib modules, so the document's CREATE EXTENSION "uuid-ossp" is left out, and the
# one function that it is there for is stood in for by the built-in that makes the same kind of UUID.
STAND_IN: Final = "CREATE FUNCTION uuid_generate_v4() RETURNS UUID LANGUAGE sql RETURN gen_random_uuid()"


class Fact(NamedTuple):
    """Something in the catalogue of a table, by name."""

    table: str
    sort: str
    name: str


class Difference(NamedTuple):
    """What the document has, what the migrations made of it (None: nothing), and why."""

    seed: str | None
    ours: str | None
    reason: str


# ── the catalogue ───────────────────────────────────────────────────────────────────────────────────────────────────

COLUMNS: Final = """
SELECT c.relname, 'column', a.attname,
       format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
       || coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '')
       || CASE WHEN a.attidentity <> '' THEN ' IDENTITY' ELSE '' END
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::REGNAMESPACE AND c.relname = ANY ($1)
"""

# NOT NULL is the column's; newer servers list it among the constraints too.
CONSTRAINTS: Final = """
SELECT c.relname, 'constraint', k.conname, pg_get_constraintdef(k.oid)
FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype <> 'n'
WHERE c.relnamespace = 'public'::REGNAMESPACE AND c.relname = ANY ($1)
"""

INDEXES: Final = """
SELECT tablename, 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = ANY ($1)
"""

TRIGGERS: Final = """
SELECT c.relname, 'trigger', t.tgname, pg_get_triggerdef(t.oid)
FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid AND NOT t.tgisinternal
WHERE c.relnamespace = 'public'::REGNAMESPACE AND c.relname = ANY ($1)
"""


async def catalogue(connection: Connection) -> dict[Fact, str]:
    """Columns, constraints, indexes and triggers of the eight tables."""
    facts: dict[Fact, str] = {}
    for query in (COLUMNS, CONSTRAINTS, INDEXES, TRIGGERS):
        for table, sort, name, definition in await connection.fetch(query, TABLES):
            facts[Fact(table, sort, name)] = definition
    return facts


def founding_statements() -> list[str]:
    """The SQL of the document's section "Core Tables", block by block."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split("\n## Core Tables\n")[1].split("\n## Summary of Tables\n")[0]
    return re.findall(r"^```sql\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


async def found(connection: Connection) -> None:
    """Make the document's tables."""
    await connection.execute(STAND_IN)
    for statements in founding_statements():
        await connection.execute(statements)


# ── what differs ────────────────────────────────────────────────────────────────────────────────────────────────────

NULLABLE_AUTHOR: Final = (
    "NOT NULL contradicts ON DELETE SET NULL: deleting the user would fail. The document's own notes decide it: "
    "author set to NULL if user deleted (preserves thread history)"
)
BUILT_IN_UUID: Final = "built in since PostgreSQL 13, the same kind of UUID, and needs no extension and no superuser"
NO_SECOND_INDEX: Final = (
    "UNIQUE indexes the column already: the constraint bears the name of the index that would repeat it, for the same "
    "look-up with one index fewer to write"
)


def column(table: str, name: str, ours: str, reason: str, seed: str | None = None) -> dict[Fact, Difference]:
    """A column that was added, or changed where `seed` says what it was."""
    return {Fact(table, "column", name): Difference(seed, ours, reason)}


def index(table: str, name: str, columns: str, reason: str) -> dict[Fact, Difference]:
    """An index that was added."""
    ours = f"CREATE INDEX {name} ON public.{table} USING btree ({columns})"
    return {Fact(table, "index", name): Difference(None, ours, reason)}


def generated_id(table: str) -> dict[Fact, Difference]:
    return column(
        table,
        "id",
        "uuid NOT NULL DEFAULT gen_random_uuid()",
        BUILT_IN_UUID,
        "uuid NOT NULL DEFAULT uuid_generate_v4()",
    )


def nullable_author(table: str) -> dict[Fact, Difference]:
    return column(table, "author_id", "uuid", NULLABLE_AUTHOR, "uuid NOT NULL")


def one_unique_index(table: str, name: str) -> dict[Fact, Difference]:
    wanted, given = f"idx_{table}_{name}", f"{table}_{name}_key"
    unique = f"CREATE UNIQUE INDEX {{}} ON public.{table} USING btree ({name})"
    plain = f"CREATE INDEX {wanted} ON public.{table} USING btree ({name})"
    return {
        Fact(table, "constraint", given): Difference(f"UNIQUE ({name})", None, NO_SECOND_INDEX),
        Fact(table, "constraint", wanted): Difference(None, f"UNIQUE ({name})", NO_SECOND_INDEX),
        Fact(table, "index", given): Difference(unique.format(given), None, NO_SECOND_INDEX),
        Fact(table, "index", wanted): Difference(plain, unique.format(wanted), NO_SECOND_INDEX),
    }


def place_in_log(table: str) -> dict[Fact, Difference]:
    return {
        **column(table, "seq", "bigint NOT NULL", "where it stands in its group's log; pages are cut by it"),
        **column(table, "key_epoch", "integer NOT NULL", "the generation of the group's key that it is sealed under"),
    }


def paged_by_group(table: str) -> dict[Fact, Difference]:
    return index(table, f"idx_{table}_group_seq", "group_id, seq", "a page of a group's own, without sorting")


def erasable(table: str) -> dict[Fact, Difference]:
    return column(table, "erased_at", "timestamp with time zone", "post.delete blanks a post and keeps its row")


IN_WHICH_GROUP: Final = "which group's log it stands in, without asking its thread; the thread has the foreign key"

DIFFERENCES: Final[dict[Fact, Difference]] = {
    **generated_id("users"),
    **one_unique_index("users", "username"),
    **column("users", "signing_key", "bytea NOT NULL", "the Ed25519 key that the user's statements are checked with"),
    **column("users", "rsa_thumbprint", "bytea NOT NULL", "what statements and wraps name the user's RSA key by"),
    **column("users", "is_bot", "boolean NOT NULL DEFAULT false", "statements say who is a bot"),
    **column("users", "token_epoch", "integer NOT NULL DEFAULT 0", "raised, it ends every session of the user"),
    **column("users", "disabled_at", "timestamp with time zone", "an operator can disable an account"),
    **generated_id("groups"),
    **one_unique_index("groups", "invite_code"),
    **column("groups", "history", "smallint NOT NULL DEFAULT 1", "whether newcomers may read back"),
    **column("groups", "name_key_epoch", "integer NOT NULL DEFAULT 1", "the key that the name is sealed under"),
    **column("groups", "knocking", "boolean NOT NULL DEFAULT true", "the standing code can be switched off"),
    **column("members", "role", "smallint NOT NULL DEFAULT 1", "member, admin, owner"),
    Fact("members", "constraint", "members_role_check"): Difference(
        None, "CHECK (((role >= 1) AND (role <= 3)))", "there are three roles"
    ),
    Fact("members", "trigger", "remember_member"): Difference(
        None,
        "CREATE TRIGGER remember_member AFTER INSERT ON public.members FOR EACH ROW EXECUTE FUNCTION remember_member()",
        "who was ever in a group is kept, so that their keys can be asked for",
    ),
    **generated_id("threads"),
    **nullable_author("threads"),
    **place_in_log("threads"),
    **paged_by_group("threads"),
    **erasable("threads"),
    **generated_id("replies"),
    **nullable_author("replies"),
    **column("replies", "group_id", "uuid NOT NULL", IN_WHICH_GROUP),
    **place_in_log("replies"),
    **index("replies", "idx_replies_thread_seq", "thread_id, seq", "a page of a thread's replies, without sorting"),
    **erasable("replies"),
    **generated_id("media"),
    **nullable_author("media"),
    **column("media", "group_id", "uuid NOT NULL", IN_WHICH_GROUP),
    **place_in_log("media"),
    **paged_by_group("media"),
    **column("media", "root", "bytea NOT NULL", "one hash over all of the file's segments, which readers check"),
    Fact("media", "trigger", "release_media"): Difference(
        None,
        "CREATE TRIGGER release_media AFTER DELETE ON public.media FOR EACH ROW EXECUTE FUNCTION release_media()",
        "whatever deletes a file: its blob is to go, and its quota comes back",
    ),
}


@pytest.mark.each_postgres
async def test_each_difference_from_the_founding_document_is_listed(database: str, migrated_database: str) -> None:
    async with connected(database) as founded, connected(migrated_database) as migrated:
        await found(founded)
        seed, ours = await catalogue(founded), await catalogue(migrated)

    assert {fact.table for fact in seed} == {*TABLES}
    differing = {fact for fact in seed.keys() | ours.keys() if seed.get(fact) != ours.get(fact)}
    assert {fact: (seed.get(fact), ours.get(fact)) for fact in differing} == {
        fact: (difference.seed, difference.ours) for fact, difference in DIFFERENCES.items()
    }


@pytest.mark.each_postgres
async def test_the_comparison_sees_whatever_changes(database: str) -> None:
    """Were a column, default, check, action, index or trigger another one, the comparison would say so."""
    changes = (
        "ALTER TABLE users ALTER COLUMN username TYPE VARCHAR(51)",
        "ALTER TABLE users ALTER COLUMN created_at DROP DEFAULT",
        "ALTER TABLE groups ALTER COLUMN encrypted_name DROP NOT NULL",
        "ALTER TABLE groups DROP CONSTRAINT invite_code_format",
        "ALTER TABLE members DROP CONSTRAINT members_user_id_fkey,"
        " ADD CONSTRAINT members_user_id_fkey FOREIGN KEY (user_id) REFERENCES users(id)",
        "DROP INDEX idx_threads_created",
        "CREATE TRIGGER idle BEFORE UPDATE ON media FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    )
    async with connected(database) as connection:
        await found(connection)
        before = await catalogue(connection)
        for change in changes:
            await connection.execute(change)
            after = await catalogue(connection)
            assert after != before, change
            before = after


async def test_the_document_contradicts_itself_where_the_list_says_so(database: str) -> None:
    """The reason for the largest difference: as written, an author can't be deleted."""
    async with connected(database) as connection:
        await found(connection)
        owner, author, group = [await connection.fetchval("SELECT gen_random_uuid()") for _ in range(3)]
        for user, name in ((owner, "owner"), (author, "author")):
            await connection.execute(
                "INSERT INTO users (id, username, password_hash, public_key) VALUES ($1, $2, '', '{}')", user, name
            )
        await connection.execute(
            "INSERT INTO groups (id, encrypted_name, created_by, invite_code) VALUES ($1, '', $2, 'abcdefgh')",
            *(group, owner),
        )
        await connection.execute(
            "INSERT INTO threads (group_id, author_id, encrypted_title, encrypted_body) VALUES ($1, $2, '', '')",
            *(group, author),
        )
        with pytest.raises(NotNullViolationError):
            await connection.execute("DELETE FROM users WHERE id = $1", author)
