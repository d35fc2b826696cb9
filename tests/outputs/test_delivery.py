import io
import json

import numpy as np
import pytest
from PIL import Image

from imagegen.contract.responses import GenerateResponse, Timings
from imagegen.outputs import delivery
from imagegen.outputs.provenance import Provenance
from tests.support.images import scene

PICTURE = scene("star", "yellow", "black")
RECORD = Provenance("micro", 42, 4, *PICTURE.size)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_a_png_holds_the_very_pixels():
    assert opened(delivery.encode(PICTURE, "png", 90, RECORD)).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize(("output_format", "pillows"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_the_format_is_what_was_asked_for(output_format, pillows):
    picture = opened(delivery.encode(PICTURE, output_format, 90, RECORD))
    assert picture.format == pillows
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - np.asarray(PICTURE)).mean() < 4


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_quality_matters(output_format):
    sizes = [len(delivery.encode(PICTURE, output_format, quality, RECORD)) for quality in (10, 95)]
    assert sizes[0] < sizes[1]


def test_the_size_of_an_answer_is_what_is_sent():
    answer = GenerateResponse(
        images=[], seeds=[1], width=128, height=128, output_format="png", model="micro", timings=Timings(),
        warnings=["prompt: micro does not know 猫"],
    )  # fmt: skip
    files = [b"x" * n for n in (0, 1, 2, 3, 1000, 100_001)]
    measured = delivery.answer_size(answer, files)
    answer.images = [delivery.to_base64(data) for data in files]
    sent = json.dumps({"output": answer.model_dump()}, ensure_ascii=False).encode()
    assert len(sent) + 200 <= measured <= len(sent) + 260
