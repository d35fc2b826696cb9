"""`imagegen plan`: a plan of the GPU's memory in one line, with nothing loaded."""

import pytest

from imagegen.cli.main import main


@pytest.fixture
def plan(monkeypatch, capsys):
    def run(*arguments, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        status = main(["plan", *arguments])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_the_plan_of_a_gpu(plan):
    status, out, _ = plan("--gpu-gb", "24", "--capability", "8.6", IMAGEGEN_MODEL="klein-9b")
    assert status == 0
    assert out.startswith("klein-9b: transformer int8 8.8 GiB, text encoder int8")
    assert out.count("\n") == 1


def test_the_plan_of_this_machine(plan):
    status, out, _ = plan()
    assert (status, out.count("\n")) == (0, 1)
    assert out.startswith("micro on the CPU: float32")


@pytest.mark.parametrize(("installed", "shown"), [(True, "transformer nf4"), (False, "transformer bf16")])
def test_a_plan_is_one_that_this_installation_can_run(plan, monkeypatch, installed, shown):
    monkeypatch.setattr("imagegen.model.acceleration.is_installed", lambda package: installed)
    status, out, _ = plan("--gpu-gb", "12", IMAGEGEN_MODEL="klein-9b")
    assert status == 0
    assert out.startswith(f"klein-9b: {shown}")


def test_a_plan_that_cannot_be_had_is_an_error(plan, monkeypatch):
    monkeypatch.setattr("imagegen.model.acceleration.is_installed", lambda package: False)
    status, out, error = plan("--gpu-gb", "12", IMAGEGEN_MODEL="klein-9b", IMAGEGEN_OFFLOAD="none")
    assert (status, out) == (1, "")
    assert error.splitlines()[-1].startswith("error: IMAGEGEN_OFFLOAD=none: klein-9b needs 19.6 GiB")
    assert "IMAGEGEN_PRECISION=bf16 IMAGEGEN_OFFLOAD=group needs 4.8 GiB" in error


@pytest.mark.parametrize("capability", ["8", "x.y", "8.9.1"])
def test_a_capability_is_two_numbers(plan, capsys, capability):
    with pytest.raises(SystemExit, match="2"):
        plan("--gpu-gb", "12", "--capability", capability)
    assert f"'{capability}' is not a compute capability such as 8.9" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["-3", "0", "nan", "inf", "two"])
def test_a_size_is_a_number_of_gigabytes(plan, capsys, size):
    with pytest.raises(SystemExit, match="2"):
        plan("--gpu-gb", size)
    assert f"'{size}' is not a size of a GPU" in capsys.readouterr().err
