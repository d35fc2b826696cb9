"""The quality gate: its measures, and micro through it."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.precision import psnr, ssim
from tests.support import ROOT


def picture(values) -> Image.Image:
    return Image.fromarray(np.asarray(values, dtype=np.uint8))


def test_psnr_and_ssim_are_the_papers():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 200, (64, 64, 3))
    assert psnr(picture(one), picture(one)) == 99
    assert ssim(picture(one), picture(one)) == pytest.approx(1)
    assert psnr(picture(one), picture(one + 10)) == pytest.approx(20 * np.log10(255 / 10))
    grey = np.full((64, 64, 3), 100)
    # Flat images: only the term of the means is left, (2ab + c1) / (a^2 + b^2 + c1).
    c1 = (0.01 * 255) ** 2
    assert ssim(picture(grey), picture(grey + 50)) == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))
    assert ssim(picture(one), picture(rng.integers(0, 200, (64, 64, 3)))) < 0.1


@pytest.mark.slow  # it generates fifty images in each precision
def test_micro_is_right_as_often_in_fp8_and_int8(tmp_path):
    """Within two points, or the status is not 0."""
    command = [sys.executable, "-m", "benchmarks.precision", "fp8+fp8", "int8+int8", "--pictures", "50"]
    done = subprocess.run([*command, "--output", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "compare.png").is_file()
    assert "fp8, text encoder fp8" in done.stdout
