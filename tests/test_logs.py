"""What is let through to the log, and in which form. Each in a process of its own: logging is set up once a process."""

import json
import os
import subprocess
import sys
import textwrap

import pytest


def logged(code, **environment):
    """The lines on stderr of a process that has set up its logs."""
    start = "import logging, asyncio, threading, warnings\nfrom imagegen import logs, settings\n"
    setup = "logs.configure(settings.Settings(_env_file=None))\n"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    done = subprocess.run(
        [sys.executable, "-c", start + setup + textwrap.dedent(code)],
        env={**kept, "LOG_LEVEL": "DEBUG", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stderr.splitlines()


def messages(code, **environment):
    return [json.loads(line)["message"] for line in logged(code, IMAGEGEN_LOG_FORMAT="json", **environment)]


@pytest.mark.parametrize(
    ("environment", "as_json"),
    [
        ({}, False),
        ({"RUNPOD_ENDPOINT_ID": "e"}, True),
        ({"RUNPOD_POD_ID": "p"}, True),
        ({"RUNPOD_POD_ID": "p", "IMAGEGEN_LOG_FORMAT": "plain"}, False),
        ({"IMAGEGEN_LOG_FORMAT": "json"}, True),
    ],
)
def test_json_on_runpod_and_text_elsewhere(environment, as_json):
    (line,) = logged("logging.getLogger('imagegen.x').warning('two\\nlines')", **environment)[:1]
    if as_json:
        assert json.loads(line).items() >= {"level": "WARNING", "logger": "imagegen.x", "message": "two\nlines"}.items()
    else:
        assert line.endswith("WARNING imagegen.x: two")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://a.example/b.png?X-Amz-Signature=canary&x=1 200", "GET https://a.example/b.png?*** 200"),
        ("GET /bucket/key?Signature=canary", "GET /bucket/key?***"),
        ("'http://user:canary@host/x'", "'http://***@host/x'"),
        ("with hf_canary_token and canary-key-of-a-caller", "with *** and ***"),
        ("canary" * 40, "***"),
        ("what? nothing", "what? nothing"),
    ],
)
def test_what_slips_into_a_line_is_hidden(text, shown):
    secrets = {
        "HF_TOKEN": "hf_canary_token",
        "HUGGING_FACE_TOKEN": "",
        "IMAGEGEN_API_KEY": "other-key-of-the-server,canary:canary-key-of-a-caller",
    }
    assert messages(f"logging.getLogger('imagegen').info({text!r})", **secrets) == [shown]


def test_an_error_is_told_without_its_words():
    (told,) = messages("""
        try:
            try:
                raise KeyError("canary")
            except KeyError as error:
                raise ValueError("canary again") from error
        except ValueError:
            logging.getLogger("anyone").exception("it failed")
    """)
    assert told.startswith("it failed\n")
    assert told.index("KeyError") < told.index("which led to") < told.index("ValueError")
    assert "canary" not in told


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('canary')",
        "threading.Thread(target=lambda: int('canary')).start()",
        "logging.getLogger('imagegen').info('%d of canary', 'canary')",
        "warnings.warn('first\\ncanary')",
        """
        async def fail():
            raise ValueError("canary")
        async def main():
            task = asyncio.create_task(fail())
            await asyncio.sleep(0.01)
            del task
        asyncio.run(main())
        """,
    ],
)
def test_nor_is_it_told_by_whoever_catches_it_last(code):
    lines = logged(code, IMAGEGEN_LOG_FORMAT="json")
    assert len(lines) == 1
    assert "canary" not in lines[0]


def test_other_libraries_are_heard_when_they_warn():
    code = """
        for name in ("imagegen httpx urllib3.connectionpool botocore.auth PIL.PngImagePlugin uvicorn.error "
                     "uvicorn.access runpod diffusers.x transformers huggingface_hub asyncio").split():
            logging.getLogger(name).setLevel(logging.DEBUG)
            for level in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger(name).log(level, "%s %s", name, level)
    """
    told = {tuple(message.split()) for message in messages(code)}
    others = {name for name, level in told if level == "30"} - {"imagegen", "uvicorn.error", "runpod"}
    assert {name for name, level in told if level == "10"} == {"imagegen"}
    assert {name for name, level in told if level == "20"} == {"imagegen", "uvicorn.error", "runpod"}
    assert "httpx" in others and "uvicorn.access" not in others


def test_a_library_that_brings_its_own_handler_is_taken_over():
    code = """
        loud = logging.getLogger("diffusers")
        loud.addHandler(logging.StreamHandler())
        loud.propagate = False
        logs.adopt()
        loud.warning("once")
    """
    assert messages(code) == ["once"]


def test_a_request_is_one_line_and_every_line_in_it_has_its_id():
    lines = [
        json.loads(line)
        for line in logged(
            """
            from concurrent.futures import ThreadPoolExecutor
            import contextvars
            log = logging.getLogger("imagegen")
            def gpu():
                log.info("in a thread")
                logs.note(steps=4)
            with logs.request("one", method="POST"):
                logs.note(mode="edit")
                with ThreadPoolExecutor() as pool:
                    pool.submit(contextvars.copy_context().run, gpu).result()
            with logs.request("two", path="/health"):
                pass
            log.info("outside")
            """,
            IMAGEGEN_LOG_FORMAT="json",
        )
    ]
    assert [(line["message"], line.get("requestId"), line["level"]) for line in lines] == [
        ("in a thread", "one", "INFO"),
        ("request", "one", "INFO"),
        ("request", "two", "DEBUG"),
        ("outside", None, "INFO"),
    ]
    assert lines[1].items() >= {"method": "POST", "mode": "edit", "steps": 4}.items()
    assert lines[1]["seconds"] >= 0


def test_a_program_that_only_imports_us_keeps_its_logging():
    code = "import logging, handler; from imagegen import logs; logs.adopt(); print(logging.root.handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
