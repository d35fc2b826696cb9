"""The record in every image, as the documented command reads it back; and that nothing else comes out."""

import asyncio
import base64
import json
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from PIL import Image

from imagegen import __version__
from imagegen.cli.inspect import read
from imagegen.cli.main import main
from imagegen.contract.requests import parse_job
from imagegen.outputs.delivery import encode
from imagegen.outputs.provenance import Provenance
from tests.e2e.test_canaries import picture
from tests.support.images import from_base64, scene, to_base64

FORMATS = ("png", "jpeg", "webp")
PICTURE = scene("star", "yellow", "black")
RECORD = Provenance("micro", 42, 4, 128, 128)
SHOWN = {
    "model": "micro",
    "seed": 42,
    "num_inference_steps": 4,
    "width": 128,
    "height": 128,
    "software": f"image-gen {__version__}",
    "digital_source_type": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
}


def drawn(service, **fields):
    (image,) = asyncio.run(service.run(parse_job({"prompt": "a red circle", "seed": 42, **fields}))).images
    return base64.b64decode(image)


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_command_reads_what_a_job_has_written(service, tmp_path, output_format):
    path = tmp_path / "picture"
    path.write_bytes(drawn(service, output_format=output_format))
    done = subprocess.run(
        [sys.executable, "-m", "imagegen", "inspect", str(path)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"file": str(path), **SHOWN}


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_prompt_is_in_it_only_where_it_is_asked_for(service, output_format):
    prompt = "a <red> \"circle\" & 'star' 🌟\n日本"
    data = drawn(service, prompt=prompt, output_format=output_format, embed_prompt=True)
    assert read(data)["prompt"] == prompt
    assert from_base64(base64.b64encode(data).decode()).size == (128, 128)
    assert b"circle" not in drawn(service, prompt=prompt, output_format=output_format)


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_longest_prompt_fits(output_format):
    told = replace(RECORD, prompt='🌟"' * 2000)
    assert read(encode(PICTURE, output_format, 90, told))["prompt"] == told.prompt


def test_an_edit_says_so(service):
    data = drawn(service, image=to_base64(scene("circle", "red", "blue")))
    assert read(data)["digital_source_type"].endswith("/compositeWithTrainedAlgorithmicMedia")


def test_the_xmp_is_what_other_readers_expect():
    told = replace(RECORD, prompt='a <red> & "green" star')
    packet = told.xmp().decode().split("?>", 1)[1].rsplit("<?", 1)[0]
    description = ElementTree.fromstring(packet)[0][0]
    extension = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
    assert description.attrib[f"{extension}DigitalSourceType"] == told.source_type
    assert description.attrib[f"{extension}AISystemUsed"] == "micro"
    assert description.attrib[f"{extension}AIPromptInformation"] == told.prompt
    assert told.xmp().startswith(b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>')


def test_what_has_no_record_or_is_no_image_ends_with_1(tmp_path, capsys):
    (tmp_path / "bare.png").write_bytes(base64.b64decode(to_base64(PICTURE)))
    (tmp_path / "text").write_text("no picture")
    exif = Image.Exif()
    exif[0x010E] = "a photographer's words"
    PICTURE.save(tmp_path / "photo.jpg", exif=exif, xmp=b"<rubbish DigitalSourceType")
    for name in ("bare.png", "text", "photo.jpg", "nowhere"):
        assert main(["inspect", str(tmp_path / name)]) == 1
    assert "error: " in capsys.readouterr().err


def test_a_source_type_that_another_wrote_is_read(tmp_path):
    xmp = b"<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/print</Iptc4xmpExt:Digi"
    PICTURE.save(tmp_path / "photo.jpg", xmp=xmp)
    found = read((tmp_path / "photo.jpg").read_bytes())
    assert found == {"digital_source_type": "http://cv.iptc.org/newscodes/digitalsourcetype/print"}


@pytest.mark.parametrize("came", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("wanted", FORMATS)
def test_nothing_that_a_reference_holds_comes_out(service, came, wanted):
    """Its EXIF, text, comment, XMP and profile are full of canaries."""
    data = drawn(service, image=picture(came), output_format=wanted)
    assert b"canary" in base64.b64decode(picture(came))
    assert b"canary" not in data
    info = from_base64(base64.b64encode(data).decode()).info
    assert not {"icc_profile", "comment", "Comment"} & set(info)
    read_back = read(data)
    assert read_back.pop("digital_source_type").endswith("compositeWithTrainedAlgorithmicMedia")
    assert read_back == {name: value for name, value in SHOWN.items() if name != "digital_source_type"}
