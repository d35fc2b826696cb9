import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import asyncio, handler
output = asyncio.run(handler.handler({"id": "x", "input": {"prompt": "a red circle", "width": 64, "height": 64}}))
from huggingface_hub import constants
print(len(output["images"]), constants.HF_HUB_OFFLINE)
"""


def test_no_library_asks_the_hub_for_weights_that_are_here():
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["1", "True"], done.stderr
