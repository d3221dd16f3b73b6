"""Passphrases: from a file or the environment, asked for without echo, or proposed."""

import getpass
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from orbital_client.cli.options import CommandError

VARIABLE: Final = "ORBITAL_PASSPHRASE"
WORDS: Final = 6
_SHORTEST: Final = 8
_LIST: Final = "eff-long"
_WORD_LENGTHS: Final = {"min_length": 3, "max_length": 9}

FileOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help=f"File with the passphrase, - for standard input; or ${VARIABLE}."),
]
NewFileOption = Annotated[
    Path | None, typer.Option("--new-passphrase-file", help="File with the new passphrase, - for standard input.")
]


def given(file: Path | None) -> str | None:
    """The passphrase from a file, or the environment; None where neither is there."""
    if file is None:
        return os.environ.get(VARIABLE)
    if str(file) == "-":
        return sys.stdin.readline().rstrip("\r\n")
    try:
        return file.read_text().rstrip("\r\n")
    except UnicodeDecodeError:
        raise CommandError(f"{file} is no text") from None


def known(file: Path | None, prompt: str = "Passphrase: ") -> str:
    """The passphrase of an account that is there."""
    passphrase = given(file)
    if passphrase is None:
        passphrase = _ask(prompt)
    if not passphrase:
        raise CommandError("the passphrase is empty")
    return passphrase


def chosen(passphrase: str | None) -> tuple[str, bool]:
    """A passphrase for an account that is new: what is given or typed, otherwise words; whether it is such words."""
    if passphrase is None:
        passphrase = _ask_twice() if sys.stdin.isatty() else ""
        if not passphrase:
            return propose(), True
    if len(passphrase) < _SHORTEST:
        raise CommandError(f"a passphrase has at least {_SHORTEST} characters; {WORDS} random words are good")
    return passphrase, False


def propose() -> str:
    """Six random words of the EFF's long list of 7,776: 77 bits."""
    from xkcdpass.xkcd_password import generate_wordlist  # type: ignore[import-untyped]  # noqa: PLC0415  seldom needed

    words: list[str] = sorted(generate_wordlist(_LIST, **_WORD_LENGTHS))
    return " ".join(secrets.choice(words) for _ in range(WORDS))


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise CommandError(f"no passphrase: set {VARIABLE}, or give --passphrase-file")
    return getpass.getpass(prompt)


def _ask_twice() -> str:
    passphrase = _ask(f"New passphrase (leave empty for {WORDS} random words): ")
    if passphrase and _ask("Once more: ") != passphrase:
        raise CommandError("that was not the same passphrase twice")
    return passphrase
