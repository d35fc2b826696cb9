"""deploy/gateway/nginx.conf, in Debian's nginx, before a real server."""

import ssl
import subprocess
import time

import httpx
import pytest

from tests.server.conftest import serving
from tests.support import ROOT, until

KEY = {"X-API-Key": "the-key-of-the-gateways-test"}
PROMPT = {"prompt": "a red circle on a blue background", "seed": 42}

pytestmark = pytest.mark.slow  # needs nginx, which `make slow` installs


@pytest.fixture
def gateway(tmp_path, free_tcp_port):
    """(a client that trusts the gateway's certificate, the service behind it)."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
            ),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    with serving(api_key=KEY["X-API-Key"], trusted_proxies="127.0.0.1") as (url, service):
        service.start().result()
        config = (ROOT / "deploy" / "gateway" / "nginx.conf").read_text()
        values = {
            "CERTIFICATE_KEY": key,
            "CERTIFICATE;": f"{certificate};",
            "UPSTREAM;": f"{url.removeprefix('http://')};",
            "HTTPS_PORT": f"127.0.0.1:{free_tcp_port}",
            "SERVER_NAME": "localhost",
        }
        for name, value in values.items():
            assert name in config
            config = config.replace(name, str(value))
        (tmp_path / "nginx.conf").write_text(
            f"user root; daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\nevents {{}}\n"
            f"http {{ access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;\n"
            f"fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;\n"
            f"{config}\n}}\n"
        )
        nginx = subprocess.Popen(["nginx", "-c", tmp_path / "nginx.conf", "-p", tmp_path])
        trust = ssl.create_default_context(cafile=str(certificate))
        try:
            with httpx.Client(base_url=f"https://localhost:{free_tcp_port}", verify=trust, timeout=120) as client:
                until(lambda: _answers(client, nginx))
                time.sleep(6)  # what was asked meanwhile is no longer counted
                yield client, service
        finally:
            nginx.terminate()
            nginx.wait(300)


def _answers(client, nginx):
    assert nginx.poll() is None
    try:
        return client.get("/ping").status_code in (200, 204)
    except httpx.TransportError:
        return False


def test_jobs_streams_limits_and_addresses_through_the_gateway(gateway, caplog):
    caplog.set_level("DEBUG", "imagegen")
    client, service = gateway

    # A job, and one that the key refuses.
    assert client.post("/generate", json=PROMPT, headers=KEY).json()["seeds"] == [42]
    assert client.post("/generate", json=PROMPT).status_code == 401

    # The client's own address is in the log, whatever it claims to be.
    client.get("/health", headers={"X-Forwarded-For": "198.51.100.7"})
    requests = [record.facts for record in caplog.records if record.message == "request"]
    assert {facts["client"] for facts in requests} == {"127.0.0.1"}

    # Events come one by one: the first before the last image is begun.
    times = []
    stream = {**KEY, "Accept": "text/event-stream"}
    job = {**PROMPT, "num_images": 4, "width": 512, "height": 512}
    with client.stream("POST", "/generate", json=job, headers=stream) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                times.append((line, time.monotonic()))
    assert times[0][0] == "event: queued" and times[-1][0] == "event: done"
    assert len({round(moment, 1) for _, moment in times}) > 2

    # A body of eight megabytes arrives; the metrics do not.
    large = client.post("/edit", json={"prompt": "x", "image": "A" * 8_000_000}, headers=KEY)
    assert large.json()["error"]["code"] == "bad_reference"
    assert client.get("/metrics", headers=KEY).status_code == 404

    # A client that goes away ends its job.
    long = {**PROMPT, "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/generate", json=long, headers=KEY, timeout=2)
    until(lambda: service.health().status == "ready", 60)

    # The page's files come all at once.
    folder = ROOT / "imagegen" / "server" / "studio"
    files = [f"/studio/{path.relative_to(folder)}" for path in folder.rglob("*.*")]
    assert len(files) > 20
    assert {client.get(file).status_code for file in files} == {200}

    # One client may not ask without end.
    statuses = [client.get("/health").status_code for _ in range(40)]
    assert 429 in statuses and statuses[0] == 200
