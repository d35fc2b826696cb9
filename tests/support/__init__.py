"""What tests share: helpers, stand-ins of what cannot run here, and inputs."""

from pathlib import Path

#: Of the checkout: where `python handler.py` runs, and where the files that the tests read are.
ROOT = Path(__file__).parents[2]
