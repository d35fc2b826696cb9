"""`imagegen generate` and `edit` at a real server, and what all commands share: version, faults, exit status."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from imagegen import __version__
from imagegen.builder.micro.measure import background_colour, shape_colour
from imagegen.cli.main import COMMANDS, main
from imagegen.server.main import create_app
from imagegen.settings import get_settings
from tests.server.conftest import running
from tests.support import settings
from tests.support.images import opened, scene

PROMPT = "a red circle on a blue background"
KEY = "a-key-of-the-test"


@pytest.fixture(scope="module")
def url():
    app = create_app(settings(api_key=KEY))
    with running(app) as address:
        app.state.service.start().result()
        yield address


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder; gives its status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        get_settings.cache_clear()
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


@pytest.fixture
def at_server(command, url):
    return lambda *arguments: command(*arguments, "--url", url, "--api-key", KEY)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.WEBP", "WEBP"), ("new/a.png", "PNG")]
)
def test_generate_writes_the_image_in_the_format_of_its_name(at_server, tmp_path, name, kind):
    status, out, _ = at_server("generate", PROMPT, "-o", name, "--seed", "42")
    assert (status, out.splitlines()[0]) == (0, f"{name}  128x128  seed 42")
    image = opened(tmp_path / name)
    assert image.format == kind
    assert (background_colour(image), shape_colour(image)) == ("blue", "red")


def test_images_without_a_name_are_in_the_folder_of_the_setting(at_server, tmp_path):
    status, out, _ = at_server("generate", PROMPT, "--seed", "7", "-n", "2")
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["micro-7.png", "micro-8.png"]
    assert out.startswith("outputs/micro-7.png  128x128  seed 7\noutputs/micro-8.png")


def test_several_images_get_their_seeds_into_the_name(at_server, tmp_path):
    assert at_server("generate", PROMPT, "-o", "a.png", "--seed", "7", "-n", "2")[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a-7.png", "a-8.png"]


@pytest.mark.parametrize("count", [1, 4])
def test_edit_takes_files(at_server, tmp_path, count):
    for i in range(count):
        scene("circle", "red", "blue").save(tmp_path / f"{i}.png")
    files = [f"{i}.png" for i in range(count)]
    status, out, _ = at_server("edit", *files, "make the background green", "-o", "out.png", "--seed", "1")
    assert status == 0, out
    assert opened(tmp_path / "out.png").size == (128, 128)


def test_the_key_comes_from_the_environment_too(command, url, monkeypatch):
    assert command("generate", PROMPT, "--url", url)[2].startswith("error: unauthorized: ")
    monkeypatch.setenv("IMAGEGEN_API_KEY", KEY)
    assert command("generate", PROMPT, "--url", url, "--seed", "1")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["generate", " "], 1, "invalid_input: prompt: is blank"),
        (
            ["generate", "x", "--width", "1000", "--height", "512"],
            1,
            "invalid_input: width: 1000 is not a multiple of 16",
        ),
        (["generate", "x", "-o", "a.gif"], 1, "--output: .gif files are not made here; allowed are .png, .jpg"),
        (["generate", "x", "-o", "file/a.png"], 1, "file: images cannot be written there (FileExistsError)"),
        (["edit", "nothing.png", "x"], 1, "nothing.png: the image cannot be read (FileNotFoundError)"),
        (["edit", "file", "x"], 1, "bad_reference: images[0]: "),
        (["generate"], 2, "the following arguments are required: prompt; see `imagegen generate --help`"),
        (["generate", "x", "--sed", "3"], 2, "unrecognized arguments: --sed 3 (did you mean --seed?)"),
        (["generate", "x", "--seed", "many"], 2, "argument --seed: invalid int value: 'many'"),
    ],
)
def test_a_fault_is_one_line_and_leaves_nothing(at_server, tmp_path, arguments, status, says):
    (tmp_path / "file").write_text("no image")
    ended, out, error = at_server(*arguments)
    assert (ended, out) == (status, "")
    assert error.startswith(f"error: {says}")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9: no answer came (ConnectError)"),
        ("localhost:7000", "--url: 'localhost:7000' must begin with http:// or https://"),
    ],
)
def test_no_server_is_one_line(command, server, says):
    assert command("generate", PROMPT, "--url", server) == (1, "", f"error: {says}\n")


def test_a_server_of_another_kind_is_named(command):
    async def other(scope, receive, send):
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    with running(other, lifespan="off") as address:
        status, _, error = command("generate", PROMPT, "--url", address)
    assert (status, error) == (1, f"error: {address}/generate: HTTP 404, and not an answer of image-gen\n")


@pytest.mark.parametrize("name", ["generat", "--nonsense", "--card-gb"])
def test_an_unknown_command_is_one_line(command, name):
    status, out, error = command(name)
    assert (status, out, error.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["health", "--port", "0"], 2, "argument --port: '0' is not a port; allowed are 1 to 65535"),
        (["worker", "--rp_serve_api", "--rp_api_port", "65536"], 2, "argument --rp_api_port: '65536' is not a port"),
        (["serve", "--model", "nope"], 1, "IMAGEGEN_MODEL: no model is called 'nope'; known are klein-9b"),
        (["inspect", "nothing.png"], 1, "nothing.png: cannot be read (FileNotFoundError)"),
        (["loras", "check"], 2, "check needs FILE, and list takes none"),
    ],
)
def test_a_wrong_argument_is_one_line(command, arguments, status, says):
    ended, out, error = command(*arguments)
    assert (ended, out, error.count("\n")) == (status, "", 1)
    assert error.startswith(f"error: {says}")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_setting_is_one_line_of_every_command_that_reads_them(command, monkeypatch, name):
    monkeypatch.setenv("PORT", "abc")
    arguments = {"generate": ["x"], "edit": ["file", "x"], "bake": ["klein-4b"], "inspect": ["file"]}.get(name, [])
    Path("file").touch()
    status, out, error = command(name, *arguments)
    if name == "inspect":  # it reads none
        return
    assert status == 1
    assert "PORT: 'abc' is not allowed; allowed: a whole number, 1 to 65535" in out + error
    assert (out + error).count("\n") <= 2


def test_the_version_is_the_packages(command):
    assert command("--version") == (0, f"imagegen {__version__}\n", "")
    assert importlib.metadata.version("klein-worker") == __version__


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(command, shell):
    status, out, _ = command("--print-completion", shell)
    assert status == 0
    assert all(word in out for word in (*COMMANDS, "--gpu-gb", "--aspect-ratio"))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from imagegen.cli.main import main\n"
        "try: main(['--help'])\n"
        "finally: print({'torch', 'pydantic', 'httpx', 'PIL', 'imagegen.settings'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "set()\n")
    assert all(name in done.stdout for name in COMMANDS)


def test_inspect_reads_what_generate_wrote(at_server, command):
    at_server("generate", PROMPT, "-o", "a.png", "--seed", "42")
    status, out, _ = command("inspect", "a.png")
    assert status == 0
    assert '"seed": 42' in out


def test_doctor_finds_nothing_wrong_here(command, monkeypatch):
    monkeypatch.setenv("RUNPOD_WEBHOOK_GET_JOB", "http://queue")  # whose worker needs no port
    status, out, _ = command("doctor")
    assert status == 0, out
    assert "ok     weights: micro is at " in out


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"IMAGEGEN_MODEL": "klein-9b", "IMAGEGEN_DEVICE": ""}, "WRONG  GPU: klein-9b needs a CUDA GPU"),
        ({"IMAGEGEN_MODEL_PATH": "/nowhere"}, "WRONG  weights: IMAGEGEN_MODEL_PATH: "),
        ({"BUCKET_NAME": "images"}, "WRONG  outputs: BUCKET_ENDPOINT_URL: is missing"),
        (
            {"IMAGEGEN_MODEL": "klein-9b", "HUGGING_FACE_TOKEN": "", "HF_TOKEN": "", "HF_HOME": "/tmp/no-cache"},
            "WRONG  weights: ",
        ),
        ({"IMAGEGEN_PRESICION": "fp8"}, "WRONG  settings: IMAGEGEN_PRESICION: "),
    ],
)
def test_doctor_says_what_is_wrong(command, monkeypatch, variables, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, out, _ = command("doctor")
    assert status == 1
    assert says in out


def test_bench_measures_at_a_server(at_server):
    status, out, _ = at_server("bench", "--runs", "1", "--references", "1")
    assert status == 0
    assert [line.split(" | ")[0] for line in out.splitlines()[2:]] == ["| generate", "| edit, 1 reference"]
