"""Files that are replaced whole and kept private."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` at the end, whole or not at all, readable by its owner alone."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` in the file's place, whole or not at all, readable by its owner alone."""
    with replacement(path) as file:
        file.write(content)


def read_file(path: Path) -> bytes | None:
    """The file's content; None if there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
