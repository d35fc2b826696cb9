"""A version of RunPod's SDK that works otherwise inside is noticed before the first job."""

from importlib import import_module
from operator import attrgetter

import pytest
from runpod.serverless.modules import rp_http, rp_scale
from runpod.serverless.modules.rp_logger import RunPodLogger

from imagegen.errors import ConfigurationError
from imagegen.runpod import sdk
from imagegen.runpod.delivery import deliver


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    """`install` and `adopt_log` change the SDK for the process."""
    monkeypatch.setattr(rp_scale, "JobScaler", rp_scale.JobScaler)
    monkeypatch.setattr(rp_http, "_transmit", rp_http._transmit)
    monkeypatch.setattr(RunPodLogger, "log", RunPodLogger.log)


def test_the_pinned_version_is_the_one_that_is_known():
    make_loop = object()
    sdk.adopt_log()
    sdk.install(make_loop, deliver)
    assert rp_scale.JobScaler is make_loop
    assert rp_http._transmit is deliver


@pytest.mark.parametrize(("module", "function", "names"), sdk._USED)
def test_a_function_that_is_gone_or_does_something_else_stops_the_start(monkeypatch, module, function, names):
    loaded = import_module(f"runpod.serverless.{module}")
    holder, _, name = function.rpartition(".")
    owner = attrgetter(holder)(loaded) if holder else loaded
    monkeypatch.setattr(owner, name, lambda *_: None)
    with pytest.raises(ConfigurationError, match=r"runpod 1\.\S+ is not the version .* does not use"):
        sdk.install(object(), deliver)
    monkeypatch.delattr(owner, name)
    if name not in dir(owner):  # else it is inherited
        with pytest.raises(ConfigurationError, match=f"{name} is gone"):
            sdk.install(object(), deliver)
    assert rp_http._transmit is not deliver


def test_a_post_that_takes_other_arguments_stops_the_start(monkeypatch):
    async def renamed(session, target, body):
        pass

    monkeypatch.setattr(rp_http, "_transmit", renamed)
    with pytest.raises(ConfigurationError, match="_transmit takes other arguments"):
        sdk.install(object(), deliver)


def test_a_log_that_is_written_another_way_stops_the_start(monkeypatch):
    monkeypatch.setattr(RunPodLogger, "debug", lambda self, message, request_id=None: print(message))
    with pytest.raises(ConfigurationError, match=r"RunPodLogger\.debug does not use log"):
        sdk.adopt_log()
