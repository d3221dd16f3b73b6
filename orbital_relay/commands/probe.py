"""Whether the store of files does what a store must: for `orbital-relay check`, which has a line for it.

A blob is written, read back and deleted. Whatever goes wrong is told with the setting that it most likely comes from.
"""

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from orbital_relay.commands.database import CommandError
from orbital_relay.commands.output import in_bytes
from orbital_relay.config import Settings
from orbital_relay.media import choose
from orbital_relay.media.base import Part, Store, StoreError, new_key

_PROBE_BYTES: Final = 1_024
_FREE_BYTES_MIN: Final = 1024**3
# What S3 says, the setting to look at then, and what is wrong with it; the first that fits.
_S3_BLAME: Final = {
    "NoSuchBucket": ("s3_bucket", "there is no such bucket"),
    "SignatureDoesNotMatch": ("s3_secret_key", "it does not belong to s3_access_key"),
    "InvalidAccessKeyId": ("s3_access_key", "the service doesn't know it"),
    "NoCredentialsError": ("s3_access_key", "not given, and the AWS SDK finds none either"),
    "AccessDenied": ("s3_access_key", "it may not do this in s3_bucket"),
    "AuthorizationHeaderMalformed": ("s3_region", "the bucket is in another one"),
    "PermanentRedirect": ("s3_region", "the bucket is in another one"),
    "RequestTimeTooSkewed": ("s3_endpoint", "its clock is not ours"),
    "does not answer": ("s3_endpoint", "nobody answers there"),
    "no answer": ("s3_endpoint", "nobody answers there"),
}


async def prove(settings: Settings, agreed: str | None) -> str:
    """Prove the store of these settings, and say which it is; raise CommandError, of one line, where it won't do.

    `agreed` is the store that the relays of the database keep its files in; None where any will do.
    """
    folder = settings.local_media_dir
    if settings.media_store == "local" and not folder.exists():
        return _without_folder(folder, agreed)
    media = choose.make_store(settings)
    started = time.monotonic()
    try:
        async with asyncio.timeout(settings.media_timeout_s):
            await media.open()
            await _write_read_delete(media)
    except TimeoutError:
        raise CommandError(_blame(settings, f"no answer in {settings.media_timeout_s:g} s")) from None
    except StoreError as error:
        raise CommandError(_blame(settings, str(error))) from error
    finally:
        await media.close()
    took_ms = (time.monotonic() - started) * 1000
    _check_agreed(settings, media.identity, agreed)
    return f"{_place(settings)}: written, read and deleted in {took_ms:.0f} ms"


def _without_folder(folder: Path, agreed: str | None) -> str:
    """The folder isn't there: the first relay makes it, where it can, and where no files are missing then."""
    if agreed is not None:
        raise CommandError(f"media_dir = {folder} is not there, and the relays of this database keep files in {agreed}")
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK) or not place.is_dir():
        raise CommandError(f"media_dir = {folder} is not there, and can't be made in {place}")
    return f"the first start makes {folder}"


async def _write_read_delete(media: Store) -> None:
    """Raise StoreError, which says at what, where the store does otherwise than it must."""
    key, data = new_key(), secrets.token_bytes(_PROBE_BYTES)
    part = Part(number=1, generation=1, first_byte=0, size_bytes=len(data))
    try:
        with _while("writing"):
            state = await media.begin(key)
            tag = await media.append(key, state, part, [data])
            await media.finish(key, state, [replace(part, tag=tag)])
        with _while("reading"):
            if await media.read(key, 0, len(data)) != data:
                raise StoreError("other bytes than were written")
    except StoreError:
        with suppress(StoreError):
            await media.delete(key)
        raise
    with _while("deleting"):
        await media.delete(key)
        if await media.size(key) is not None:
            raise StoreError("what was deleted is still there")


@contextmanager
def _while(doing: str) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise StoreError(f"{doing}: {error}") from error


def _blame(settings: Settings, problem: str) -> str:
    """The problem, with the setting that it most likely comes from; secrets are not shown."""
    if settings.media_store == "local":
        folder = settings.local_media_dir
        return f"media_dir = {folder}: {problem.replace(f'{folder}: ', '')}"
    for said, (name, meaning) in _S3_BLAME.items():
        if said in problem:
            shown = {
                "s3_bucket": settings.s3_bucket,
                "s3_region": settings.s3_region,
                "s3_endpoint": _endpoint(settings),
            }
            value = f" = {shown[name]}" if name in shown else ""
            return f"{name}{value}: {meaning} ({problem})"
    return f"media_store = s3: {problem}"


def _check_agreed(settings: Settings, identity: str, agreed: str | None) -> None:
    """Raise CommandError where the relays of this database have another store."""
    if agreed is None or agreed == identity:
        return
    if settings.media_store == "local" and agreed.startswith("local:"):
        raise CommandError(
            f"media_dir = {settings.local_media_dir} is not the folder that the relays of this database share "
            "(docs/media.md says how to move it)"
        )
    raise CommandError(
        f"media_store: the relays of this database keep files in {agreed}, and these settings name {identity} "
        "(docs/media.md says how to move them)"
    )


def _place(settings: Settings) -> str:
    """Which store it is; raise CommandError for a folder that is nearly full."""
    if settings.media_store == "s3":
        return f"bucket {settings.s3_bucket} at {_endpoint(settings)}"
    free = shutil.disk_usage(settings.local_media_dir).free
    if free < _FREE_BYTES_MIN:
        raise CommandError(f"media_dir = {settings.local_media_dir} has only {in_bytes(free)} free")
    return f"folder {settings.local_media_dir}, {in_bytes(free)} free"


def _endpoint(settings: Settings) -> str:
    return settings.s3_endpoint or f"Amazon, {settings.s3_region}"
