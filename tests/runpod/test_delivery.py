"""An answer's way to RunPod: tried again, and bounded."""

import asyncio
import time

import pytest
from aiohttp import ClientError, ClientResponseError, ClientSession, web

from imagegen.runpod import delivery


def post(answer, monkeypatch, came, a_try=None, total=None):
    """Delivers to a server that answers by `answer(number of the request)`, and adds each request's time to `came`."""

    async def handle(request):
        await request.read()
        came.append(time.monotonic())
        return await answer(len(came))

    async def run():
        app = web.Application()
        app.router.add_post("/", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            async with ClientSession() as session:
                await delivery.deliver(session, f"http://127.0.0.1:{runner.addresses[0][1]}/", "{}")
        finally:
            await runner.cleanup()

    if total is not None:
        monkeypatch.setattr(delivery, "TRY_SECONDS", a_try)
        monkeypatch.setattr(delivery, "TOTAL_SECONDS", total)
    asyncio.run(run())


async def never(_):
    await asyncio.sleep(3600)


def status(*statuses):
    async def answer(number):
        return web.Response(status=statuses[min(number, len(statuses)) - 1])

    return answer


def test_its_bounds():
    assert (delivery.TRY_SECONDS, delivery.TOTAL_SECONDS) == (30, 120)


def test_a_queue_that_accepts_and_never_answers_is_given_up_with_an_error_that_the_sdk_catches(monkeypatch):
    for total in (3, 30, 300):  # seconds, in which a busy machine may not come to a second try
        begun, came = time.monotonic(), []
        with pytest.raises(ClientError):
            post(never, monkeypatch, came, a_try=0.3, total=total)
        if len(came) > 1:
            break
    assert len(came) > 1  # a try ends before the whole
    assert time.monotonic() - begun < 10 * total


@pytest.mark.parametrize("refused", [429, 500, 503])
def test_what_may_pass_is_tried_again(monkeypatch, refused):
    came = []
    post(status(refused, refused, 200), monkeypatch, came)
    assert len(came) == 3


@pytest.mark.parametrize("refused", [400, 413])
def test_what_is_refused_for_good_is_not(monkeypatch, refused):
    came = []
    with pytest.raises(ClientResponseError):
        post(status(refused), monkeypatch, came)
    assert len(came) == 1
