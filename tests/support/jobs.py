"""Jobs for a service in this process."""

import asyncio

from imagegen.contract.requests import parse_job


def run(service, default_seed=None, max_answer=None, **fields):
    """The answer to a job: of a prompt, unless `fields` say another."""
    request = parse_job({"prompt": "a red circle on a blue background", **fields})
    return asyncio.run(service.run(request, default_seed=default_seed, max_answer=max_answer))
