"""Ray Serve with two replicas of micro on this machine: the same routes, and a replica that dies loses nothing."""

import asyncio
import json
import os
import signal
import socket
from importlib.metadata import version

import httpx
import pytest
import yaml
from PIL import ImageChops

from imagegen.contract.schemas import GenerateRequest
from imagegen.settings import variable_names
from tests.support import ROOT, until
from tests.support.images import from_base64, scene, to_bytes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # `make slow` installs Ray
JOB = {"prompt": "a red circle on a blue background", "seed": 42}
LOAD = 60


@pytest.fixture(scope="module")
def url():
    import ray
    from ray import serve

    from deploy.ray_serve import Args, app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGEGEN_MAX_QUEUE", str(2 * LOAD))  # three quarters are for one caller
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=4, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(app(Args(min_replicas=2, max_replicas=2, gpus=0, cpus=1)))
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


def test_the_routes_are_those_of_the_http_api(url, service):
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/health").json()["status"] == "ready"
        assert client.get("/capabilities").json()["model"] == "micro"
        answer = client.post("/generate", json=JOB)
        assert answer.headers["X-Request-ID"]
        here = asyncio.run(service.run(GenerateRequest(**JOB)))
        there, ours = (from_base64(images[0]) for images in (answer.json()["images"], here.images))
        # A replica is another process, with threads of its own: sums in another order round some pixels otherwise.
        assert there.size == ours.size
        assert all(high <= 2 for _, high in ImageChops.difference(there, ours).getextrema())
        reference = {"image": to_bytes(scene("circle", "red", "blue"))}
        edit = client.post("/edit", data={"prompt": "make the background green"}, files=reference)
        assert from_base64(edit.json()["images"][0]).size == (128, 128)
        wrong = client.post("/generate", json={"prompt": "x", "width": 1000, "height": 512})
        assert (wrong.status_code, wrong.json()["error"]["field"]) == (422, "width")
        bad = client.post("/edit", json={"prompt": "x", "images": ["bm90IGEgcGljdHVyZQ=="]})
        assert (bad.status_code, bad.json()["error"]["field"]) == (422, "images[0]")  # an error of the replica's
        openai = client.post("/v1/images/generations", json={"prompt": "a green star"})
        assert openai.json()["data"][0]["b64_json"]


def test_a_stream_shows_the_image_as_it_forms_and_can_be_cancelled(url):
    stream = {"Accept": "text/event-stream"}
    with httpx.Client(base_url=url, timeout=60) as client:
        text = client.post("/generate?previews=true", json=JOB, headers=stream).text
        names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
        assert names == ["queued", *["step"] * 4, "drawn", "done"]
        assert text.count('"preview"') == 3  # the last step is the picture

        long = {**JOB, "num_inference_steps": 50, "num_images": 8, "width": 512, "height": 512}
        with client.stream("POST", "/generate", json=long, headers=stream) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: queued"
            job_id = json.loads(next(lines).removeprefix("data: "))["id"]
            while next(lines) != "event: step":
                pass
            assert client.delete(f"/jobs/{job_id}").json()["status"] == "cancelled"
            rest = list(lines)
        assert rest[-2].startswith("data: ") and json.loads(rest[-2][6:])["code"] == "cancelled"
        # Its replica is free again.
        assert client.post("/generate", json=JOB).status_code == 200


def test_a_replica_that_dies_under_load_loses_nothing(url):
    from benchmarks.ray_replicas import replicas

    async def under_load():
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            job = {"prompt": JOB["prompt"]}
            answers = [asyncio.create_task(client.post("/generate", json=job)) for _ in range(LOAD)]
            while sum(task.done() for task in answers) < 5:
                await asyncio.sleep(0.01)
            before = replicas()
            os.kill(before[0], signal.SIGKILL)
            return before, await asyncio.gather(*answers)

    before, answers = asyncio.run(under_load())
    assert len(before) == 2
    assert [answer.status_code for answer in answers] == [200] * LOAD
    timings = [answer.json()["timings"] for answer in answers]
    assert max(t["queue"] for t in timings) > max(t["denoise"] for t in timings)  # the wait at the ingress is told
    with httpx.Client(base_url=url, timeout=60) as client:
        seeds = [answer.json()["seeds"][0] for answer in answers]
        assert len(set(seeds)) == LOAD
        for answer in answers[::6]:
            again = client.post("/generate", json={**JOB, "seed": answer.json()["seeds"][0]})
            assert again.json()["images"] == answer.json()["images"]


def test_jobs_are_the_ingresss_and_a_replica_that_dies_loses_none(url):
    from benchmarks.ray_replicas import replicas

    with httpx.Client(base_url=url, timeout=60) as client:
        jobs = [client.post("/jobs", json={"prompt": JOB["prompt"]}).json()["id"] for _ in range(20)]
        until(lambda: client.get(f"/jobs/{jobs[0]}").json()["status"] == "succeeded")
        os.kill(replicas()[0], signal.SIGKILL)
        states = until(lambda: ended(client, jobs))
        assert [state["status"] for state in states] == ["succeeded"] * 20
        assert client.get(states[-1]["result"]["urls"][0]).headers["content-type"] == "image/png"


def ended(client, jobs):
    """The states of jobs, once all have ended."""
    states = [client.get(f"/jobs/{job}").json() for job in jobs]
    return states if all(state["finished_at"] for state in states) else None


def test_the_manifest_fits_the_application():
    from deploy import ray_serve

    service, claim, *_ = yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "image-gen.yaml").read_text())
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert application["import_path"] == "deploy.ray_serve:app"
    args = ray_serve.Args(**application["args"])
    cluster = service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["rayVersion"] == version("ray")
    assert (args.min_replicas, args.max_replicas) == (workers["minReplicas"], workers["maxReplicas"])
    (worker,) = workers["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == args.gpus
    (volume, _) = workers["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    known = {variable["name"] for variable in worker["env"]}
    assert known <= set(variable_names())
    assert {"name": "IMAGEGEN_MODEL", "value": "klein-9b"} in worker["env"]
