"""Field types shared by frames and statements, with their sizes."""

from typing import Annotated

from msgspec import Meta

# In Python `$` also matches before a newline at the end; what follows it keeps that out.
_END = r"$(?!\n)"

Id = Annotated[bytes, Meta(min_length=16, max_length=16, description="UUID, 16 bytes")]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32, description="SHA-256, 32 bytes")]
SigningKey = Annotated[bytes, Meta(min_length=32, max_length=32, description="Ed25519 public key, 32 bytes")]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64, description="Ed25519 signature, 64 bytes")]
SequenceNumber = Annotated[int, Meta(ge=0, le=2**53 - 1, description="sequence number in a group's log")]
KeyEpoch = Annotated[int, Meta(ge=1, le=2**31 - 1, description="generation of a group's key")]
Microseconds = Annotated[int, Meta(ge=0, le=2**53 - 1, description="microseconds since 1970 UTC")]
RequestId = Annotated[int, Meta(ge=0, le=2**32 - 1, description="chosen by the client")]
Username = Annotated[str, Meta(pattern="^[a-z0-9_]{3,50}" + _END, description="3 to 50 of a-z, 0-9 and _")]
InviteCode = Annotated[str, Meta(pattern="^[A-Za-z0-9]{8}" + _END, description="8 letters and digits")]
CursorName = Annotated[str, Meta(pattern="^[a-z0-9_.-]{1,64}" + _END, description="1 to 64 of a-z, 0-9, _ . -")]
Label = Annotated[str, Meta(max_length=100, description="a name for people")]
Iv = Annotated[bytes, Meta(min_length=12, max_length=12, description="initialisation vector, 12 bytes")]
ByteCount = Annotated[int, Meta(ge=0, le=2**53 - 1, description="number of bytes, or a position in a file")]
KindNumber = Annotated[int, Meta(ge=1, le=255, description="kind of an event")]
