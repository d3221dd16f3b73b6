"""The command line for tests: in a thread, which is quick, or as a process of its own.

ran = await orbital("user", "list", "--json", dsn=migrated_database)
assert ran.status == 0
"""

import asyncio
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from orbital_relay import cli
from tests import forks
from tests.forks import Ran
from tests.relays import TOKEN_KEY, media_dir_of

LIMIT_S = 40


def given_settings(dsn: str | None, data_dir: Path | None = None, **settings: Any) -> dict[str, str]:
    """Variables for this database, or an embedded one; `settings` as in the configuration."""
    given = {
        **({} if dsn is None else {"database_url": dsn, "token_keys": TOKEN_KEY, "media_dir": media_dir_of(dsn)}),
        **({} if data_dir is None else {"data_dir": data_dir}),
        **settings,
    }
    return {f"ORBITAL_{key.upper()}": str(value) for key, value in given.items()}


async def orbital(
    *arguments: str, dsn: str | None = None, data_dir: Path | None = None, stdin: str = "", **settings: Any
) -> Ran:
    """Run a command to its end, in a thread; `serve` and the embedded database want a process."""
    environment: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("ORBITAL_"))
    environment |= {"DATABASE_URL": None, **given_settings(dsn, data_dir, **settings)}
    invoke = functools.partial(CliRunner().invoke, cli.app, arguments, input=stdin, env=environment)
    async with asyncio.timeout(LIMIT_S):
        result = await asyncio.to_thread(invoke)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


async def orbital_process(
    *arguments: str, dsn: str | None = None, data_dir: Path | None = None, stdin: str = "", **settings: Any
) -> Ran:
    """Run a command to its end, as a process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ORBITAL_")}
    clean.pop("DATABASE_URL", None)
    return await forks.ran(
        "orbital-relay",
        arguments,
        environment=clean | given_settings(dsn, data_dir, **settings),
        folder=Path(tempfile.gettempdir()),  # no orbital.toml of the checkout's
        stdin=stdin,
        limit_s=LIMIT_S,
    )
