"""Files: section 18.7."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Final

from generator import world
from generator.crypto.secrets import SEGMENT_KEY, Case, altered, refused
from generator.world import GROUP, MEDIA, REPLY, stretch
from orbital_client.crypto import segments
from orbital_client.crypto.segments import PLAIN_BYTES, FileSealing

IV: Final = stretch("file iv", 7) + bytes(5)
BYTE: Final = b"o"
"""Of which every file here consists."""

FILE_SIZES: Final = (0, 1, 300, 65_519, 65_520, 65_521, 131_040, 200_000)
PADDED_SIZES: Final = (0, 1, 2, 7, 8, 9, 15, 16, 17, 100, 255, 256, 257, 1_000, 65_520, 65_521, 1_000_000, 2**40 + 1)


def _sealing(size_bytes: int, media_id: bytes = MEDIA) -> FileSealing:
    return FileSealing(GROUP, media_id, size_bytes, SEGMENT_KEY, IV)


def _sealed(size_bytes: int, media_id: bytes = MEDIA) -> list[bytes]:
    sealing = _sealing(size_bytes, media_id)
    count = max(1, -(-segments.padded_bytes(size_bytes) // PLAIN_BYTES))
    shares = [max(0, min(PLAIN_BYTES, size_bytes - index * PLAIN_BYTES)) for index in range(count)]
    return [sealing.seal(index, index == count - 1, BYTE * share) for index, share in enumerate(shares)]


def root(size_bytes: int) -> bytes:
    """The root of such a file."""
    return world.root_of(b"".join(_sealed(size_bytes)))


def files() -> Case:
    """All of one id and key, which real files never share."""
    return {
        "group_id": GROUP,
        "media_id": MEDIA,
        "key": SEGMENT_KEY,
        "encryption_iv": IV,
        "aad": segments.PREFIX + GROUP + MEDIA,
        "byte": BYTE[0],
        "sizes": [_file(size) for size in FILE_SIZES],
        "padme": [
            {
                "size_bytes": size,
                "padded_bytes": segments.padded_bytes(size),
                "stored_bytes": _sealing(size).stored_bytes(size),
            }
            for size in PADDED_SIZES
        ],
        "refused": [
            refused(name, "bad_seal", size_bytes=size, index=index, last=last, segment=segment)
            for name, size, index, last, segment in _misplaced()
        ],
    }


def _file(size_bytes: int) -> Case:
    sealed = _sealed(size_bytes)
    last = len(sealed) - 1
    return {
        "size_bytes": size_bytes,
        "padded_bytes": segments.padded_bytes(size_bytes),
        "stored_bytes": _sealing(size_bytes).stored_bytes(size_bytes),
        "root": root(size_bytes),
        "segments": [
            {
                "nonce": IV[:7] + index.to_bytes(4, "big") + bytes((index == last,)),
                "stored_bytes": len(segment),
                "sha256": sha256(segment).digest(),
            }
            for index, segment in enumerate(sealed)
        ],
    }


def _misplaced() -> Iterator[tuple[str, int, int, bool, bytes]]:
    """What the author says the size is, and where the reader finds which segment."""
    [whole] = _sealed(300)
    [others] = _sealed(300, REPLY)
    _, second = _sealed(65_521)
    unfinished = _sealing(300).seal(0, False, BYTE * 300)
    yield "reordered", 65_521, 0, False, second
    yield "cut short behind it", 300, 0, True, unfinished
    yield "lengthened", 300, 0, False, whole
    yield "another file's", 300, 0, True, others
    yield "another group's", 300, 0, True, replace(_sealing(300), group_id=REPLY).seal(0, True, BYTE * 300)
    yield "altered", 300, 0, True, altered(whole)
    yield "larger than its author says", 299, 0, True, whole
