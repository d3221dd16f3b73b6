"""A relay's part as the embedded PostgreSQL knows it, in a process of its own that tests can kill.

python -m tests.integration.embedded_supervisor DATA_DIR: starts the server, commits a row, says so, and waits.
"""

import sys
from pathlib import Path

import asyncpg
import uvloop

from orbital_relay.embedded import EmbeddedPostgres


async def main() -> None:
    server = EmbeddedPostgres(Path(sys.argv[1]))
    connection = await asyncpg.connect(await server.start())
    await connection.execute("CREATE TABLE kept (word text)")
    await connection.execute("INSERT INTO kept VALUES ('acknowledged')")
    print("committed", flush=True)
    await server.wait()


if __name__ == "__main__":
    uvloop.run(main())
