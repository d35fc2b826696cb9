"""Every block of docs/clients.md, as it stands there."""

import re

import pytest

from tests.clients.conftest import shows
from tests.docs.pages import PAGES, section
from tests.support.images import opened

pytestmark = pytest.mark.slow  # `make slow` installs the clients

SECTIONS = [
    title
    for title in re.findall(r"^## (.+)$", PAGES["docs/clients.md"], re.MULTILINE)
    if re.search(r"^```(python|js|sh)$", section("docs/clients.md", title), re.MULTILINE)
]


def test_every_client_has_a_section():
    assert len(SECTIONS) >= 10


@pytest.mark.parametrize("title", SECTIONS)
def test_what_the_page_shows_works(run, endpoint, tmp_path, title):
    text = section("docs/clients.md", title)
    ((language, program),) = re.findall(r"^```(python|js|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    program = program.replace("https://api.runpod.ai/v2/ENDPOINT_ID", f"{endpoint}/endpoint")
    program = program.replace("ENDPOINT_ID", "endpoint")
    small = "createRunpod" not in program  # whose sizes begin with 512; micro's colours are right at 128
    if small:
        program = program.replace("512x512", "128x128")
    if "RunPod's SDK for Python" in title:
        program = program.replace("import runpod\n", f"import runpod\nrunpod.endpoint_url_base = {endpoint!r}\n")
    if "RunPod's SDK for JavaScript" in title:
        program = program.replace('runpodSdk("your-runpod-api-key"', f'runpodSdk("key", {{ baseUrl: "{endpoint}" }}')
        # Its own bound of a call is 3 seconds, for which other processes may hold both cores.
        program = program.replace("images: output.images } })", "images: output.images } }, 120_000)")
        program = program.replace("endpoint.status(job.id)", "endpoint.status(job.id, 120_000)")
    printed = run(language, program + ('\nprint(url[:22], end="")' if "url = " in program else ""))
    if "url = " in program:
        assert printed == "data:image/png;base64,"
        return
    for name, colours in (("circle.png", ("blue", "red")), ("green.png", ("blue", "green"))):
        picture = opened(tmp_path / name)
        assert shows(picture) == colours if small else picture.size == (512, 512)
    if "stream" in program:
        assert "image_generation.completed" in printed
    if "partial_images" in program:
        assert printed.count("image_generation.partial_image") == 2
