"""Files in a folder: `ab/abcd…` is a blob, `ab/abcd….3.part` what generation 3 of its upload has written so far, and
`ab/abcd….5f0c….whole` a blob that is being put together.

Everything is reached from a descriptor of the folder, by names that the relay made, and never through a symbolic link.
A blob is whole and durable before it has its name, so that whatever breaks off at any moment is finished by trying
again; whatever finishes the same blob at the same time, here or at another relay, works on a file of its own.
"""

import _thread
import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Final, TypeVar

from orbital_relay.media.base import BlobMissing, Part, Store, Stored, StoreError, check_key
from orbital_relay.media.files import NEW, READ, WRITE, Root, copy_range, opened, size_of, unlink, write_all

T = TypeVar("T")

_MARKER: Final = ".orbital-media"
_MARKER_TEXT: Final = re.compile(rb"[0-9a-f]{32}")
_NAME: Final = re.compile(r"([0-9a-f]{32})(\.[0-9]+\.part|\.[0-9a-f]+\.whole)?")


class LocalStore(Store):
    """A folder; several relays may share it."""

    part_bytes = 0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identity = ""
        self._root: Root | None = None

    @property
    def identity(self) -> str:
        """What the marker in the folder says."""
        return self._identity

    async def open(self) -> None:
        """Make the folder, if it isn't there, and give it an identity."""
        self._root, self._identity = await self._in_thread(_open_folder, self._folder)

    async def close(self) -> None:
        """Let the folder go. What hangs in the file system goes on in its thread, and holds nothing up."""
        self._root = None

    async def begin(self, key: str) -> str:
        """Nothing needs to be said of a file before its first part."""
        check_key(key)
        return ""

    async def append(self, key: str, state: str, part: Part, pieces: Sequence[bytes | memoryview]) -> str:
        """Write into the file of the part's generation, at the part's place."""
        await self._run(_append, check_key(key), part, pieces)
        return ""

    async def discard(self, key: str, state: str, parts: Sequence[Part], *, whole: bool) -> None:
        """Cut them off the file of their generation, or remove it."""
        await self._run(_discard, check_key(key), parts, whole)

    async def finish(self, key: str, state: str, parts: Sequence[Part]) -> None:
        """Rename the one file, or what several generations wrote, put together in one."""
        await self._run(_finish, check_key(key), parts)

    async def read(self, key: str, offset: int, length: int) -> bytes:
        """Read at a place."""
        return await self._run(_read, check_key(key), offset, length)

    async def size(self, key: str) -> int | None:
        """The file's size."""
        return await self._run(_size_of_blob, check_key(key))

    async def delete(self, key: str) -> None:
        """Remove all files under the key, and make sure that they stay removed."""
        await self._run(_remove, check_key(key), lambda name: True)

    async def delete_parts(self, key: str) -> None:
        """Remove all files under the key but the blob."""
        await self._run(_remove, check_key(key), lambda name: name != key)

    async def walk(self) -> AsyncIterator[Stored]:
        """Walk through the folder; what bears no name of ours, or is no file, is somebody else's."""
        for number in range(256):
            for stored in await self._run(_list, f"{number:02x}"):
                yield stored

    async def url(self, key: str, ttl_s: int) -> str | None:
        """A folder has no addresses."""
        return None

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        if self._root is None:
            raise StoreError("the store is closed")
        return await self._in_thread(function, self._root, *arguments)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in a thread that may hang for ever in the file system: the process can end without it."""
        answer: Future[T] = Future()
        answer.set_running_or_notify_cancel()  # whoever gives up waiting takes nothing away from the thread
        try:
            _thread.start_new_thread(_work, (answer, function, arguments))
            return await asyncio.wrap_future(answer)
        except OSError as error:
            raise StoreError(f"{self._folder}: {os.strerror(error.errno or 0)}") from error
        finally:
            del answer  # it has the error, which has this frame: descriptors would wait for the garbage collector


def _work(answer: Future[T], function: Callable[..., T], arguments: Sequence[object]) -> None:
    try:
        answer.set_result(function(*arguments))
    except BaseException as error:
        answer.set_exception(error)
    finally:
        del answer


# ── in threads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _open_folder(folder: Path) -> tuple[Root, str]:
    """Make the folder, if it isn't there, and return what its marker says, whoever has made that."""
    root = Root.open(folder)
    # Written under another name, so that nobody ever reads half of it; each start shows that the folder can be written.
    scratch = f"{_MARKER}.{secrets.token_hex(4)}"
    try:
        with opened(scratch, NEW, root.number) as file:
            write_all(file, [secrets.token_hex(16).encode()], 0)
            os.fsync(file)
        with suppress(FileExistsError):
            os.link(scratch, _MARKER, src_dir_fd=root.number, dst_dir_fd=root.number, follow_symlinks=False)
    finally:
        unlink([scratch], root.number)
    os.fsync(root.number)
    with opened(_MARKER, READ, root.number) as file:
        text = os.read(file, 64)
    if not _MARKER_TEXT.fullmatch(text):
        raise StoreError(f"{folder / _MARKER} is not what the relay has written")
    return root, f"local:{text.decode()}"


def _append(root: Root, key: str, part: Part, pieces: Sequence[bytes | memoryview]) -> None:
    name = _part_name(key, part.generation)
    with root.directory(key[:2], make=True) as directory:
        is_new = size_of(name, directory) is None
        with opened(name, NEW if is_new else WRITE, directory) as file:
            write_all(file, pieces, part.first_byte)
            os.fdatasync(file)
        if is_new:
            os.fsync(directory)
            os.fsync(root.number)


def _discard(root: Root, key: str, parts: Sequence[Part], whole: bool) -> None:
    name = _part_name(key, parts[0].generation)
    with suppress(FileNotFoundError), root.directory(key[:2]) as directory:
        if whole:
            unlink([name], directory)
        else:
            with opened(name, WRITE, directory) as file:
                os.ftruncate(file, min(part.first_byte for part in parts))


def _finish(root: Root, key: str, parts: Sequence[Part]) -> None:
    size = sum(part.size_bytes for part in parts)
    with root.directory(key[:2], make=True) as directory:
        if size_of(key, directory) != size:
            try:
                _make_blob(key, size, parts, directory)
            except FileNotFoundError as error:
                if size_of(key, directory) != size:  # nobody else has finished it meanwhile
                    raise BlobMissing(f"{error.filename} is not there") from error
        os.fsync(directory)
        os.fsync(root.number)
        unlink([name for name in _names_of(key, directory) if name != key], directory)


def _make_blob(key: str, size: int, parts: Sequence[Part], directory: int) -> None:
    """Give what the parts are in the blob's name, once all of it is there and durable."""
    generations = {part.generation for part in parts}
    if len(generations) == 1:
        whole = _part_name(key, generations.pop())
    else:
        whole = f"{key}.{secrets.token_hex(8)}.whole"
        try:
            _put_together(key, whole, parts, directory)
        except (OSError, StoreError):
            unlink([whole], directory)  # where the disk is full, it must not be fuller with every try
            raise
    with opened(whole, WRITE, directory) as file:
        written = os.fstat(file).st_size
        if written < size:
            raise BlobMissing(f"{whole} has lost bytes")
        if written > size:  # by a part that was written, and not recorded
            os.ftruncate(file, size)
        os.fsync(file)
    os.rename(whole, key, src_dir_fd=directory, dst_dir_fd=directory)


def _put_together(key: str, whole: str, parts: Sequence[Part], directory: int) -> None:
    """Copy what each generation wrote into one new file; the place of a byte is the same in all of them."""
    with opened(whole, NEW, directory) as target:
        for generation, run in groupby(sorted(parts, key=lambda part: part.first_byte), lambda part: part.generation):
            with opened(_part_name(key, generation), READ, directory) as source:
                for part in run:
                    copy_range(source, target, part.first_byte, part.first_byte + part.size_bytes)


def _read(root: Root, key: str, offset: int, length: int) -> bytes:
    try:
        with root.directory(key[:2]) as directory, opened(key, READ, directory) as file:
            return os.pread(file, length, offset)
    except FileNotFoundError as error:
        raise BlobMissing(f"{key} is not there") from error


def _size_of_blob(root: Root, key: str) -> int | None:
    with suppress(FileNotFoundError), root.directory(key[:2]) as directory:
        return size_of(key, directory)
    return None


def _remove(root: Root, key: str, is_meant: Callable[[str], bool]) -> None:
    """Remove files under a key, until there are none: a blob may just be getting its name."""
    with suppress(FileNotFoundError), root.directory(key[:2]) as directory:
        while names := [name for name in _names_of(key, directory) if is_meant(name)]:
            unlink(names, directory)
        os.fsync(directory)


def _list(root: Root, name: str) -> list[Stored]:
    """What is in a directory; in an order of no meaning."""
    found: set[Stored] = set()
    with suppress(FileNotFoundError), root.directory(name) as directory:
        for file in os.listdir(directory):
            match = _NAME.fullmatch(file)
            size = size_of(file, directory) if match and file.startswith(name) else None
            if match and size is not None:
                found.add(Stored(match[1], None if match[2] else size))
    return list(found)


def _part_name(key: str, generation: int) -> str:
    return f"{key}.{generation}.part"


def _names_of(key: str, directory: int) -> list[str]:
    """The files under a key."""
    return [name for name in os.listdir(directory) if (match := _NAME.fullmatch(name)) and match[1] == key]
