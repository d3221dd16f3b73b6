"""The files of a folder: by their names in an open directory, and never through a symbolic link.

All of it blocks, and raises OSError.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from orbital_relay.media.base import BlobMissing

# Without O_NONBLOCK, opening a FIFO that somebody has put there would wait for ever.
_SAFELY: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
READ: Final = os.O_RDONLY | _SAFELY
WRITE: Final = os.O_WRONLY | _SAFELY
NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | _SAFELY
_PRIVATE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700
_COPY_BYTES: Final = 64 * 1024 * 1024
_PIECES: Final = os.sysconf("SC_IOV_MAX")


class Root:
    """The folder's descriptor, which is closed when nobody has it any more: a thread that hangs may, for long."""

    def __init__(self, number: int) -> None:
        self.number = number

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Make the folder, if it isn't there, and open it. It may be a link: it is the operator who names it."""
        with suppress(FileExistsError):  # what is no folder can't be opened as one
            folder.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_DIRECTORY)
        return cls(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def __del__(self) -> None:
        os.close(self.number)

    @contextmanager
    def directory(self, name: str, *, make: bool = False) -> Iterator[int]:
        """The descriptor of a directory in the folder."""
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, _PRIVATE_DIRECTORY, dir_fd=self.number)
        with opened(name, _DIRECTORY, self.number) as directory:
            yield directory


@contextmanager
def opened(name: str, flags: int, directory: int) -> Iterator[int]:
    """The descriptor of a file, or of another directory, in a directory."""
    file = os.open(name, flags, _PRIVATE, dir_fd=directory)
    try:
        yield file
    finally:
        os.close(file)


def size_of(name: str, directory: int) -> int | None:
    """A file's size; None where there is none, nor anything but a file."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def unlink(names: Iterable[str], directory: int) -> None:
    """Remove files that may be gone already."""
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def write_all(file: int, pieces: Iterable[bytes | memoryview], offset: int) -> None:
    """Write everything: the kernel may take a part of it, before it says that the disk is full, too."""
    views = [memoryview(piece) for piece in pieces]
    while views:
        written = os.pwritev(file, views[:_PIECES], offset)
        offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


def copy_range(source: int, target: int, first: int, last: int) -> None:
    """Copy bytes of a file to the same place in another; raise BlobMissing where there are less."""
    while first < last:
        copied = os.copy_file_range(source, target, min(last - first, _COPY_BYTES), first, first)
        if not copied:
            raise BlobMissing("a part has lost bytes")
        first += copied
