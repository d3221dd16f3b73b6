"""Files in an S3 bucket, of Amazon's or any compatible service: multipart uploads, ranged reads, presigned URLs."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import md5
from typing import TYPE_CHECKING, Any, Final

import aioboto3
from aiohttp import ClientError as HttpError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from orbital_relay.media.base import BlobMissing, Part, Store, Stored, StoreError, check_key
from orbital_relay.media.read_ahead import ReadAhead

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

_TRIES: Final = 3
_CONNECTIONS: Final = 32
_BEYOND: Final = frozenset({"InvalidRange", "416"})
_MISSING: Final = frozenset({"NoSuchKey", "NoSuchUpload", "InvalidPart", "404", "NotFound"})


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Which bucket, and how to reach it. Without `access_key` credentials are found as the AWS SDK does."""

    bucket: str
    prefix: str
    region: str
    part_bytes: int
    cache_bytes: int
    timeout_s: float
    path_style: bool = True
    endpoint: str | None = None
    public_endpoint: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)


class S3Store(Store):
    """A bucket. Requests are tried again by the SDK, with backoff, within the limit of the call."""

    def __init__(self, settings: S3Settings) -> None:
        self.part_bytes = settings.part_bytes
        self._settings = settings
        self._bucket = settings.bucket
        self._stack = AsyncExitStack()
        self._client: S3Client | None = None
        self._signer: S3Client | None = None
        self._cache = ReadAhead(settings.cache_bytes, self._fetch)

    @property
    def identity(self) -> str:
        """Where the objects are."""
        settings = self._settings
        return f"s3:{settings.endpoint or settings.region}/{settings.bucket}/{settings.prefix}"

    async def open(self) -> None:
        """Make the clients; nothing is asked of the service yet."""
        settings = self._settings
        session = aioboto3.Session()
        with _problems():
            self._client = await self._stack.enter_async_context(self._make_client(session, settings.endpoint))
            self._signer = self._client
            if settings.public_endpoint is not None:
                client = self._make_client(session, settings.public_endpoint)
                self._signer = await self._stack.enter_async_context(client)

    def _make_client(self, session: Any, endpoint: str | None) -> Any:  # stubs know four hundred services
        settings = self._settings
        return session.client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.region,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={
                    "addressing_style": "path" if settings.path_style else "virtual",
                    # What has a body has its MD5 among its signed headers; hashing it again would hold up the loop.
                    "payload_signing_enabled": False,
                },
                connect_timeout=settings.timeout_s,
                read_timeout=settings.timeout_s,
                retries={"mode": "standard", "max_attempts": _TRIES},
                max_pool_connections=_CONNECTIONS,
                # Compatible services don't all know the SDK's newer checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        self._client = self._signer = None
        await self._cache.close()
        await self._stack.aclose()

    async def begin(self, key: str) -> str:
        """Create a multipart upload; its id is the state."""
        with _problems():
            return (await self._s3.create_multipart_upload(Bucket=self._bucket, Key=self._name(key)))["UploadId"]

    async def append(self, key: str, state: str, part: Part, pieces: Sequence[bytes | memoryview]) -> str:
        """Upload a part."""
        body, digest = await asyncio.to_thread(_body_of, pieces)
        with _problems():
            answer = await self._s3.upload_part(
                Bucket=self._bucket,
                Key=self._name(key),
                UploadId=state,
                PartNumber=part.number,
                Body=body,
                ContentMD5=digest,
            )
            return answer["ETag"]

    async def discard(self, key: str, state: str, parts: Sequence[Part], *, whole: bool) -> None:
        """Put a byte in the place of each: S3 can't delete a part, but what has its number takes its place."""
        for part in parts:
            with suppress(BlobMissing):  # aborted, or completed without it
                await self.append(key, state, part, [b"-"])

    async def finish(self, key: str, state: str, parts: Sequence[Part]) -> None:
        """Complete the multipart upload; done before, the object is there."""
        name = self._name(key)
        if not parts:
            with _problems():
                await self._s3.put_object(Bucket=self._bucket, Key=name, Body=b"")
            return
        ordered = sorted(parts, key=lambda part: part.number)
        named: list[CompletedPartTypeDef] = [{"PartNumber": part.number, "ETag": part.tag} for part in ordered]
        try:
            with _problems():
                await self._s3.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=name,
                    UploadId=state,
                    MultipartUpload={"Parts": named},
                )
        except BlobMissing:
            if await self.size(key) != sum(part.size_bytes for part in parts):
                raise
        if [part.number for part in ordered] != [*range(1, len(parts) + 1)]:
            await self.delete_parts(key)  # it was begun several times, and what was given up may have come about

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Read out of blocks, each of which is fetched once; the next one is fetched meanwhile."""
        return await self._cache.read(check_key(key), offset, length)

    async def _fetch(self, key: str, offset: int, length: int) -> bytes:
        try:
            with _problems():
                answer = await self._s3.get_object(
                    Bucket=self._bucket, Key=self._name(key), Range=f"bytes={offset}-{offset + length - 1}"
                )
                async with answer["Body"] as body:
                    return await body.read()
        except _BeyondTheEnd:
            return b""

    async def size(self, key: str) -> int | None:
        """The object's size."""
        try:
            with _problems():
                return (await self._s3.head_object(Bucket=self._bucket, Key=self._name(key)))["ContentLength"]
        except BlobMissing:
            await self._check_bucket()  # the answer to a HEAD does not say what is missing
            return None

    async def _check_bucket(self) -> None:
        try:
            with _problems():
                await self._s3.head_bucket(Bucket=self._bucket)
        except BlobMissing as error:
            raise StoreError("S3 has no such bucket") from error

    async def delete(self, key: str) -> None:
        """Delete the object, and every multipart upload of its name."""
        await self.delete_parts(key)
        with _problems():
            await self._s3.delete_object(Bucket=self._bucket, Key=self._name(key))
        self._cache.forget(key)

    async def delete_parts(self, key: str) -> None:
        """Abort every multipart upload of this name."""
        name = self._name(key)
        async for found, upload_id in self._uploads(name):
            if found == name:
                try:
                    with _problems():
                        await self._s3.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload_id)
                except BlobMissing:
                    continue

    async def walk(self) -> AsyncIterator[Stored]:
        """Objects by their names, then multipart uploads; what bears no key of ours is somebody else's."""
        with _problems():
            paginator = self._s3.get_paginator("list_objects_v2")
            async for page in paginator.paginate(Bucket=self._bucket, Prefix=self._settings.prefix):
                for found in page.get("Contents", ()):
                    if key := self._key(found["Key"]):
                        yield Stored(key, found["Size"])
        async for name, _ in self._uploads(self._settings.prefix):
            if key := self._key(name):
                yield Stored(key, None)

    async def url(self, key: str, ttl_s: int) -> str | None:
        """A presigned GET of one object."""
        if self._signer is None:
            raise StoreError("the store is closed")
        with _problems():
            return await self._signer.generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": self._name(key)}, ExpiresIn=ttl_s
            )

    @property
    def _s3(self) -> "S3Client":
        if self._client is None:
            raise StoreError("the store is closed")
        return self._client

    def _name(self, key: str) -> str:
        return self._settings.prefix + check_key(key)

    def _key(self, name: str) -> str | None:
        try:
            return check_key(name.removeprefix(self._settings.prefix))
        except ValueError:
            return None

    async def _uploads(self, prefix: str) -> AsyncIterator[tuple[str, str]]:
        """Multipart uploads under a prefix: name and id."""
        with _problems():
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
            async for page in pages:
                for found in page.get("Uploads", ()):
                    yield found["Key"], found["UploadId"]


class _BeyondTheEnd(StoreError):
    """A range begins behind the end of the object."""


@contextmanager
def _problems() -> Iterator[None]:
    """Say in the store's words what the SDK raises."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise BlobMissing(f"S3 has no such thing: {code}") from error
        if code in _BEYOND:
            raise _BeyondTheEnd(code) from error
        raise StoreError(f"S3 refuses: {code}") from error
    except KeyError as error:
        raise StoreError(f"S3 does not say {error}") from error
    except (BotoCoreError, HttpError, OSError) as error:
        raise StoreError(f"S3 does not answer: {type(error).__name__}") from error


def _body_of(pieces: Sequence[bytes | memoryview]) -> tuple[bytes, str]:
    """The body of a part, and its MD5 for the header."""
    data = b"".join(pieces)
    return data, b64encode(md5(data, usedforsecurity=False).digest()).decode()
