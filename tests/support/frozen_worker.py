"""A worker at the point of a snapshot, and two that go on from it; prints what each is, as a line of JSON.

fork() stands in for the snapshot: both children begin with the memory of the parent. Threads do not survive it, so the
children are asked for their random numbers, and the parent for its jobs.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets

import numpy as np
import psutil
import torch

from imagegen.contract.schemas import EditRequest
from imagegen.engine.service import Service, seed_anew
from tests.support import settings
from tests.support.images import scene, to_base64


def draws() -> list[float | str]:
    """Of every generator of random numbers that a job, or a library that it uses, may ask."""
    return [random.random(), float(torch.rand(1)), float(np.random.rand()), secrets.token_hex(8)]


def main() -> None:
    """Loads, freezes, goes on."""
    service = Service(settings())
    service.start().result()
    loaded = service.health().start
    before = loaded.total if loaded else 0
    service.freeze()
    process = psutil.Process()
    frozen = {
        "children": [child.name() for child in process.children()],
        "sockets": [str(connection) for connection in process.net_connections("all")],
        "files": [file.path for file in process.open_files() if file.mode != "r"],
    }
    drawn = []
    for _ in range(2):
        reading, writing = os.pipe()
        if os.fork() == 0:
            seed_anew()
            os.write(writing, json.dumps(draws()).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            drawn.append(json.load(answer))
        os.wait()
    service.thaw()
    start = service.health().start
    request = EditRequest(prompt="make it green", images=[to_base64(scene("circle", "red", "blue"))])
    answers = [asyncio.run(service.run(request)) for _ in range(1)]
    idle = service.figures()['imagegen_gpu_idle_seconds_total{reason="no_job"}']
    service.close()
    print(
        json.dumps(
            {
                **frozen,
                "drawn": drawn,
                "start": [before, start.total if start else None],
                "images": [len(answer.images) for answer in answers],
                "idle": idle,
            }
        )
    )


if __name__ == "__main__":
    main()
