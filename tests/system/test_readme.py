"""The README's example works when it is pasted."""

import asyncio
import re
import sys
from pathlib import Path

from tests.relays import running_relay

README = Path(__file__).parents[2] / "README.md"
LIMIT_S = 40


def example() -> str:
    found = re.search(r"<!-- example -->\n```python\n(.*?)```\n<!-- /example -->", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_is_as_short_as_it_is_called() -> None:
    assert len([line for line in example().splitlines() if line]) <= 15


async def test_the_example_prints_the_thread_and_the_reply(migrated_database: str, tmp_path: Path) -> None:
    async with running_relay(migrated_database) as relay:
        program = tmp_path / "example.py"
        program.write_text(example().replace("ws://127.0.0.1:8765", relay.url))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", program), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                said = [(await process.stdout.readline()).decode() for _ in range(2)]
        finally:
            process.kill()
            await process.communicate()
    assert re.fullmatch(r"ann_\w{8} · Ubik\n", said[0]), said
    assert re.fullmatch(r"bob_\w{8} · I have begun already\.\n", said[1]), said
