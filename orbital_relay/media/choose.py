"""Which store of files the settings ask for, and whether it is the one that the database speaks of."""

from typing import Final

from orbital_relay.config import Settings
from orbital_relay.errors import StartupError
from orbital_relay.media.base import Store
from orbital_relay.media.local import LocalStore
from orbital_relay.store import facts
from orbital_relay.store import media as media_store
from orbital_relay.store.pool import Connection

FACT: Final = "media_store"


def make_store(settings: Settings) -> Store:
    """The store of these settings; not open yet."""
    if settings.media_store == "local":
        return LocalStore(settings.local_media_dir)
    if settings.s3_bucket is None:
        raise AssertionError("the settings hold each other to it")
    # Only who needs the AWS SDK waits for it, and has its code in memory.
    from orbital_relay.media.s3 import S3Settings, S3Store  # noqa: PLC0415

    return S3Store(
        S3Settings(
            bucket=settings.s3_bucket,
            prefix=settings.s3_prefix,
            region=settings.s3_region,
            part_bytes=settings.s3_part_bytes,
            cache_bytes=settings.s3_cache_bytes,
            timeout_s=settings.media_timeout_s,
            path_style=settings.s3_path_style,
            endpoint=settings.s3_endpoint,
            public_endpoint=settings.s3_public_endpoint,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key,
        )
    )


async def register(connection: Connection, identity: str) -> None:
    """Agree with the other relays on this database on one store: raise StartupError where theirs is another.

    Where nothing depends on the old one, neither files nor relays, the new one takes its place.
    """
    agreed = await facts.agree_on(connection, FACT, identity)
    if agreed == identity:
        return
    if await media_store.depends_on_store(connection):
        raise StartupError(
            "media_store: the database speaks of files in another store, or another folder, than these settings name; "
            "bring them back, or forget the files with `orbital-relay media audit --repair --adopt`"
        )
    if await facts.count_relays(connection) > 1:  # ourselves, and others who will keep files in theirs
        raise StartupError(
            "media_store: running relays of this database keep files in another store, or another folder, than these "
            "settings name; give all of them the same"
        )
    await facts.replace(connection, FACT, identity)
