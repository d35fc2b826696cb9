"""How a process ends that cannot go on: a port in use, and Ctrl-C while the model loads."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support import ROOT


def start(*command, **environment):
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "command",
    [["-m", "imagegen"], ["-m", "imagegen", "serve"], ["handler.py", "--rp_serve_api", "--rp_api_port", "PORT"]],
)
def test_a_port_in_use_is_said_and_nothing_else(command):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = start(*(word.replace("PORT", port) for word in command), PORT=port)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error.startswith(f"error: port {port} of ")
    assert " is in use; choose another with " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["-m", "imagegen", "generate", "a red circle"], 130),
        (["handler.py", "--test_input"], 130),
        (["handler.py", "--rp_serve_api", "--rp_api_port", "PORT"], 130),
        (["-m", "imagegen", "serve"], 0),
    ],
)
def test_ctrl_c_while_loading_ends_at_once(tmp_path, command, status):
    """diffusers is imported as if it never ended: only a process that does not wait for its threads ends."""
    (tmp_path / "diffusers").mkdir()
    code = f"import time; open({str(tmp_path / 'loading')!r}, 'w').close(); time.sleep(600)\n"
    (tmp_path / "diffusers" / "__init__.py").write_text(code)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    process = start(
        *(word.replace("PORT", port) for word in command),
        PYTHONPATH=str(tmp_path),
        PORT=port,
        IMAGEGEN_OUTPUT_DIR=str(tmp_path),
    )
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "loading").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)  # and not 600
    finally:
        process.kill()
    assert process.returncode == status, error
    assert "Traceback" not in out + error
    assert status == 0 or error.endswith("\ninterrupted\n")
