"""OpenAI's client for JavaScript in a page of another origin (Debian's chromium)."""

import functools
import http.server
import json
import shutil
import threading

import pytest
from playwright.sync_api import sync_playwright

from tests.clients.conftest import CLIENTS
from tests.server.conftest import serving

pytestmark = pytest.mark.slow  # chromium and the client are installed by `make slow`

PAGE = """<!doctype html><title>a page</title><script type="module">
import OpenAI from "/openai/index.mjs";
const client = new OpenAI({ baseURL: "SERVER/v1", apiKey: "key-of-sixteen-or-more", dangerouslyAllowBrowser: true });
const seen = {};
try {
  seen.models = (await client.models.list()).data.map((model) => model.id);
  seen.image = (await client.images.generate({ prompt: "a red circle" })).data[0].b64_json.length;
  const stream = await client.images.generate({ prompt: "a red circle", stream: true, partial_images: 1 });
  seen.events = [];
  for await (const event of stream) seen.events.push(event.type);
} catch (error) { seen.error = String(error); }
document.title = JSON.stringify(seen);
</script>"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_openais_client_in_a_page(tmp_path):
    shutil.copytree(CLIENTS / "node_modules" / "openai", tmp_path / "openai")
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=tmp_path))
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    origin = f"http://localhost:{pages.server_port}"
    with serving(cors_origins=origin, api_key="key-of-sixteen-or-more") as (url, service), sync_playwright() as play:
        service.start().result()
        (tmp_path / "index.html").write_text(PAGE.replace("SERVER", url))
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"], timeout=120_000)
        page = browser.new_page()
        page.set_default_timeout(120_000)  # other processes may hold both cores for half a minute
        page.goto(origin)
        page.wait_for_function("document.title.startsWith('{')")
        seen = json.loads(page.title())
        browser.close()
    pages.shutdown()
    assert "error" not in seen, seen
    assert seen["models"] == ["micro"]
    assert seen["image"] > 1000
    assert seen["events"] == ["image_generation.partial_image", "image_generation.completed"]
