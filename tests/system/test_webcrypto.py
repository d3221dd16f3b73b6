"""crypto.json in a browser: WebCrypto, and a page written from the specification, find every value again."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page, async_playwright

from tests.protocol.vectors import load

BROWSERS = ("chromium-headless-shell", "chromium")
SCRIPT = Path(__file__).with_name("webcrypto.js")
VECTORS = load("crypto")

# Nothing in these is computed: contents as other clients write them are a matter of MessagePack alone.
NOT_HERE = {"about", "contents"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page with nothing on it. Browsers show `crypto.subtle` only to pages from TLS or a loopback address."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text("<!doctype html><title>vectors</title>")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page(origin: str) -> AsyncIterator[Page]:
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip("Debian's Chromium is not installed (apt-get install chromium-headless-shell)")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=browser_path, args=arguments)
        page = await browser.new_page()
        await page.goto(origin)
        await page.add_script_tag(path=SCRIPT)
        yield page
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recomputed(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = await page.evaluate("vectors => recompute(vectors)", VECTORS)
    return found


def only(expected: Any, found: Any) -> Any:
    """Of what is expected, the part that was computed."""
    match found:
        case dict():
            return {key: only(expected.get(key), value) for key, value in found.items()}
        case list() if isinstance(expected, list) and len(expected) == len(found):
            return [only(one, value) for one, value in zip(expected, found, strict=True)]
        case _:
            return expected


@pytest.mark.parametrize("part", sorted(VECTORS.keys() - NOT_HERE))
async def test_a_browser_finds_the_same(part: str, recomputed: dict[str, Any]) -> None:
    found, expected = recomputed[part], VECTORS[part]
    if part == "invite":
        assert found.pop("is_link")
    if part == "wraps":
        assert {wrap.pop("outcome") for wrap in found["opened"]} == {"opened"}
    assert found == only(expected, found)


async def test_nothing_is_left_out(recomputed: dict[str, Any]) -> None:
    assert recomputed.keys() == VECTORS.keys() - NOT_HERE
