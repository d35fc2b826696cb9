"""What the OpenAPI document says of a request, and what the contract does with it, are one: every field's values alone,
in pairs, and in threes."""

import copy
import itertools
import random

import jsonschema_rs
import pytest

from imagegen.contract import requests
from imagegen.contract.schemas import EditRequest, GenerateRequest
from imagegen.engine import openai
from imagegen.errors import ImageGenError
from imagegen.jobs import bfl
from imagegen.server.main import create_app
from tests.support import settings

EMPTY = (None, "", [], {})
EDIT = {
    "mask": ("QUJD",),
    "mask_invert": (True, False),
    "mask_grow": (0, 4, 513),
    "mask_feather": (0, 4.0, 4.5),
    "correct_drift": (True, False, 1),
    "preserve": ("auto", "off", "on"),
    "expand": ({"left": 16}, {"left": 0}, {"left": None}, {"left": 16, "top": None}, {"lef": 16}, {"top": "16"}),
    "fit": ("expand", "shrink"),
    "strength": (0, 0.5, 1, 1.0, 2, "1"),
}
COMMON = {
    "width": (64, 64.0, 65, 4096, "64"),
    "height": (64,),
    "aspect_ratio": ("1:1", "match_input", "5:4"),
    "negative_prompt": ("x", " "),
    "seed": (-1, 0, -2, 4.0, 1.5, True, 2**53),
    "num_images": (1, 2, 9),
    "num_inference_steps": (4, 51),
    "output_format": ("png", "gif"),
    "delivery": ("base64", "url"),
    "loras": ([{"name": "a"}],),
    "style": ("any", 4),
    "nothing": (1,),
}
IMAGES = {"images": (["QUJD"], ["QUJD"] * 5, [None], [""], ["QUJD", None], "QUJD")}
HOOKS = {"webhook_url": ("https://example.com",), "webhook_secret": ("whsec_" + "QUJD" * 8, "QUJD")}
OPENAI = {
    "n": (1, 0, 9),
    "size": ("auto", "64x64", "65x64"),
    "model": ("micro", "klein"),
    "response_format": ("b64_json", "url"),
    "output_format": ("png", "gif"),
    "background": ("auto", "transparent"),
    "quality": ("max", "auto"),
    "stream": (True, "true"),
    "partial_images": (0, 3, 4),
    "seed": (-1, 4, 2**53),
}
BFL = {
    "input_image": ("QUJD",),
    "input_image_3": ("QUJD", 5),
    "seed": (-1, 4, 2**53),
    "width": (64, 65),
    "height": (64,),
    "safety_tolerance": (2, 9, 2.0),
    "output_format": ("jpeg", "gif"),
    "webhook_url": ("https://example.com",),
    "webhook_secret": ("any", "x" * 257),
    "transparent_bg": (False, True),
    "nothing": (1,),
}


def native(schema):
    return lambda service, body: requests.parse(schema, body, most=requests.limits(service.spec, service.settings))


def of_openai(edit):
    def parse(service, body):
        job, _ = openai.translate(body, edit, service.spec, service.settings)
        openai.streaming(body)
        return job

    return parse


def of_jobs(service, body, jobs):
    body = dict(body)
    jobs.hook(*(body.pop(name, None) for name in ("webhook_url", "webhook_secret")))
    return requests.parse_job(body)


def of_bfl(service, body, jobs):
    body = dict(body)
    url, secret = (body.pop(name, None) for name in ("webhook_url", "webhook_secret"))
    jobs.hook(url, bfl.secret_of(secret), True)
    return bfl.translate(body)


ROUTES: dict = {
    "/generate": (native(GenerateRequest), {**COMMON, "mask": ("QUJD",)}, {}),
    "/edit": (native(EditRequest), {**COMMON, **EDIT, "images": IMAGES["images"][1:]}, {"images": ["QUJD"]}),
    "/jobs": (of_jobs, {"mode": ("generate", "edit", "paint"), **IMAGES, **COMMON, **EDIT, **HOOKS}, {}),
    "/v1/images/generations": (of_openai(False), OPENAI, {}),
    "/v1/images/edits": (
        of_openai(True),
        {**OPENAI, "strength": (0.5, 1), "mask": ("QUJD",)},
        {"images": ["QUJD", {"image_url": "QUJD"}]},
    ),
    "/v1/flux-2-klein-9b": (of_bfl, BFL, {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def app():
    app = create_app(settings())
    app.state.service.choose()
    return app


@pytest.mark.parametrize("path", ROUTES)
def test_what_the_document_allows_is_taken_and_what_it_does_not_is_refused(app, path):
    parse, fields, start = ROUTES[path]
    if parse in (of_jobs, of_bfl):
        parse = lambda service, body, first=parse: first(service, body, app.state.jobs)  # noqa: E731
    document = app.openapi()
    schema = copy.deepcopy(document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"])
    allowed = jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})
    service = app.state.service
    values = [(name, value) for name, known in fields.items() for value in (*known, *EMPTY, [None])]
    rng = random.Random(0)
    threes = (rng.sample(values, 3) for _ in range(3_000))
    seen = {True: 0, False: 0}
    for chosen in itertools.chain(((one,) for one in values), itertools.combinations(values, 2), threes):
        if len({name for name, _ in chosen}) < len(chosen):
            continue
        body = {"prompt": "x", **start, **dict(chosen)}
        try:
            job = parse(service, body)
            requests.check(job, service.spec, service.settings)
            taken = job.delivery == "base64" and not job.loras  # there is no object store, and no adapter
        except ImageGenError as error:
            taken = False
            reason = error.message
        assert allowed.is_valid(body) == taken, (body, "taken" if taken else reason)
        seen[taken] += 1
    assert min(seen.values()) > 500, seen
