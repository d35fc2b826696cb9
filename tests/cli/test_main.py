"""`python -m imagegen --plan`: a plan of the card's memory in one line, with nothing loaded."""

import sys

import pytest

from imagegen.__main__ import main


@pytest.fixture
def plan(monkeypatch, capsys):
    def run(*arguments, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["imagegen", "--plan", *arguments])
        status = main()
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_the_plan_of_a_card(plan):
    status, out, _ = plan("--card-gb", "24", "--capability", "8.6", IMAGEGEN_MODEL="klein-9b")
    assert status == 0
    assert out.startswith("klein-9b: transformer int8 8.8 GiB, text encoder bf16")
    assert out.count("\n") == 1


def test_the_plan_of_this_machine(plan):
    status, out, _ = plan()
    assert (status, out.count("\n")) == (0, 1)
    assert out.startswith("micro on the CPU: float32")


@pytest.mark.parametrize(("installed", "shown"), [(True, "transformer nf4"), (False, "transformer bf16")])
def test_a_plan_is_one_that_this_installation_can_run(plan, monkeypatch, installed, shown):
    monkeypatch.setattr("imagegen.model.acceleration.is_installed", lambda package: installed)
    status, out, _ = plan("--card-gb", "12", IMAGEGEN_MODEL="klein-9b")
    assert status == 0
    assert out.startswith(f"klein-9b: {shown}")


def test_a_plan_that_cannot_be_had_is_an_error(plan, monkeypatch):
    monkeypatch.setattr("imagegen.model.acceleration.is_installed", lambda package: False)
    status, out, error = plan("--card-gb", "12", IMAGEGEN_MODEL="klein-9b", IMAGEGEN_OFFLOAD="none")
    assert (status, out) == (1, "")
    assert error.splitlines()[-1].startswith("error: IMAGEGEN_OFFLOAD=none: klein-9b needs 19.3 GiB")
    assert "IMAGEGEN_PRECISION=bf16 IMAGEGEN_OFFLOAD=group needs 4.9 GiB" in error


@pytest.mark.parametrize("capability", ["8", "x.y"])
def test_a_capability_is_two_numbers(plan, capability):
    with pytest.raises(SystemExit):
        plan("--card-gb", "12", "--capability", capability)
