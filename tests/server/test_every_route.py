"""What holds at each route of the application, whichever module it is of, and at those that are added later."""

import re
import socket

import httpx
import pytest

from imagegen.server.main import create_app
from tests.server.conftest import running, serving
from tests.support import settings

KEY = "a-key-of-sixteen-and-more"
#: What is answered without a key: the page, health for load balancers, and what is signed.
OPEN = {("GET", "/"), ("GET", "/health"), ("GET", "/ping"), ("GET", "/v1/samples/{job_id}"), ("GET", "/studio")}
#: Of OpenAPI's own pages and the mounted folders there is GET alone.
MADE = {"{job_id}": "0b7e6a2f9c5d4e3f8a1b2c3d4e5f6071", "{number}": "0", "{file_path}": "a"}


def every_route():
    """(method, path) of each route, as they are declared; a folder of files as one."""
    found = []

    def walk(routes, prefix=""):
        for route in routes:
            router = getattr(route, "original_router", None)
            if router is not None:
                walk(router.routes, prefix)
            else:
                found.extend((method, route.path) for method in getattr(route, "methods", None) or {"GET"})

    walk(create_app(settings(api_key=KEY)).routes)
    return sorted({(method, path) for method, path in found if method != "HEAD"})


ROUTES = every_route()


def ask(client, method, path, **headers):
    """Asks a route, of a POST with an empty object, which is no job."""
    for name, value in MADE.items():
        path = path.replace(name, value)
    path = f"{path}/index.html" if path == "/studio" else path
    body = {"content": b"{}"} if method == "POST" else {}
    return client.request(method, path, headers={"Content-Type": "application/json", **headers}, **body)


@pytest.fixture(scope="module")
def keyed():
    with (
        serving(api_key=KEY, preload_models=False, max_body_mb=1) as (url, _),
        httpx.Client(base_url=url, timeout=300) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def without_key():
    with serving(preload_models=False) as (url, _), httpx.Client(base_url=url, timeout=300) as client:
        yield client


def test_there_are_routes():
    assert {("POST", "/generate"), ("GET", "/jobs/{job_id}"), ("GET", "/metrics"), ("GET", "/docs")} < set(ROUTES)
    assert {("GET", "/v1/get_result"), ("POST", "/v1/images/edits"), ("GET", "/openapi.json")} < set(ROUTES)
    assert set(ROUTES) > OPEN


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_key_is_needed_where_it_is_promised(keyed, method, path):
    answer = ask(keyed, method, path)
    assert (answer.status_code == 401) == ((method, path) not in OPEN)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    with_key = ask(keyed, method, path, **{"X-API-Key": KEY})
    assert with_key.status_code not in (401, 403)
    assert with_key.status_code < 500 or with_key.json()["error"]["code"] == "not_ready"
    assert with_key.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers", [{"Host": "page.example"}, {"Origin": "https://page.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_a_foreign_page_is_refused(without_key, method, path, headers):
    answer = ask(without_key, method, path, **headers)
    assert answer.status_code == 403
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_body_that_is_too_large_is_not_read(keyed, method, path):
    """Whatever the method: it is refused, or answered without it, and the connection closed."""
    for name, value in MADE.items():
        path = path.replace(name, value)
    path = f"{path}/index.html" if path == "/studio" else path
    with socket.create_connection((keyed.base_url.host, keyed.base_url.port), timeout=300) as client:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: 2000000\r\n\r\n".encode())
        received = client.recv(65536)
    assert received.split(b" ")[1] == b"413"
    assert b"connection: close" in received.lower()


def test_metrics_on_a_port_of_their_own_share_it_with_no_route(unused_port):
    app = create_app(settings(metrics_port=unused_port, preload_models=False, api_key=KEY))
    with running(app, port=unused_port) as url, httpx.Client(base_url=url, timeout=300) as client:
        for method, path in ROUTES:
            assert ask(client, method, path, **{"X-API-Key": KEY}).status_code == (200 if path == "/metrics" else 404)
