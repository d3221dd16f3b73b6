"""Every error code and every close code of the protocol has a test that makes a relay say it.

Such a test bears the mark `produces`, and names the code in its body; below are those that belong nowhere else.
"""

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from orbital_protocol import frames
from orbital_protocol.codes import CloseCode, ErrorCode
from tests.people import connected, found_group
from tests.relays import relay_here
from tests.stage import stage_on
from tests.talk import Refused, post_thread, reply, talking

TESTS = Path(__file__).parents[1]
LIMIT_S = 15
Code = ErrorCode | CloseCode
_CODES: dict[str, type[ErrorCode] | type[CloseCode]] = {"ErrorCode": ErrorCode, "CloseCode": CloseCode}


def producers() -> dict[Code, list[str]]:
    """The tests that bear the mark, by code."""
    found: dict[Code, list[str]] = {code: [] for code in (*ErrorCode, *CloseCode)}
    for path in sorted(TESTS.rglob("test_*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for code in codes_of(function):
                    found[code].append(f"{path.relative_to(TESTS)}::{function.name}")
    return found


def codes_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Code]:
    """The codes of a test's mark."""
    body = " ".join(ast.unparse(statement) for statement in function.body)
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.produces":
            assert function.name.startswith("test_"), f"{function.name} is no test"
            for argument in decorator.args:
                assert isinstance(argument, ast.Attribute)
                code: Code = _CODES[ast.unparse(argument.value)][argument.attr]
                assert is_named(code, body), f"{function.name} does not look for {argument.attr}"
                yield code


def is_named(code: Code, body: str) -> bool:
    """Whether a test speaks of the code: as a member, as the exception of that name, or as the word on the wire."""
    names = (f"{type(code).__name__}.{code.name}", code.name.title().replace("_", ""), code.name.lower())
    return any(name in body for name in names)


def test_every_code_has_a_test_that_produces_it() -> None:
    assert not [code.name for code, tests in producers().items() if not tests]


# ── those that belong nowhere else ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.produces(CloseCode.AUTH_FAILED, ErrorCode.CREDENTIALS_INVALID)
async def test_hopeless_credentials_close(migrated_database: str) -> None:
    """A session that has ended, a refresh token that is none; on an authenticated connection they are but an error."""
    async with stage_on(migrated_database) as stage, relay_here(migrated_database) as url:
        [ann] = await stage.people(1)
        ended = await stage.token(ann)
        await stage.sql.execute("UPDATE sessions SET revoked_at = now()")
        good = await stage.token(ann)
        hopeless: list[tuple[type[frames.Request], dict[str, str]]] = [
            (frames.Authenticate, {"access_token": ended}),
            (frames.Refresh, {"refresh_token": "no token at all"}),
        ]
        for request, fields in hopeless:
            async with talking(url) as talk:
                with pytest.raises(Refused) as refused:
                    await talk.ask(request, **fields)
                assert refused.value.code == ErrorCode.CREDENTIALS_INVALID
                assert await talk.closed() == CloseCode.AUTH_FAILED
        async with talking(url, good) as talk:
            with pytest.raises(Refused):
                await talk.ask(frames.Refresh, refresh_token="no token at all")
            await talk.ask(frames.GroupList)


@pytest.mark.produces(ErrorCode.OVERLOADED)
async def test_a_relay_that_has_too_much_to_append_is_overloaded(migrated_database: str) -> None:
    """The lane holds two posts beside one that the database may keep waiting; all else is told to come back."""
    async with (
        stage_on(migrated_database) as stage,
        relay_here(migrated_database, lanes=1, lane_queue=2, max_batch=1) as url,
    ):
        [ann] = await stage.people(1)
        group_id = await found_group(stage.sql, ann)
        async with talking(url, await stage.token(ann)) as talk:
            thread_id, _ = await post_thread(talk, group_id)
            async with connected(migrated_database) as other, other.transaction():
                await other.execute("SELECT FROM group_heads WHERE group_id = $1 FOR UPDATE", group_id)
                futures = [talk.send(reply(talk, group_id, thread_id)) for _ in range(20)]
                async with asyncio.timeout(LIMIT_S):
                    while sum(future.done() for future in futures) < 17:
                        await asyncio.wait([f for f in futures if not f.done()], return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(LIMIT_S):
                await asyncio.wait(futures)
            errors = [error for future in futures if (error := future.exception())]
            assert len(errors) >= 17
            for error in errors:
                assert isinstance(error, Refused)
                assert error.code == ErrorCode.OVERLOADED
                assert error.error.retry_after_ms
            assert len(await stage.log(group_id)) == 2 + len(futures) - len(errors)
