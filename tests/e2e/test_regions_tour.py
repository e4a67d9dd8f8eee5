"""A region dies in the middle of a sentence, at one token after the other: the answer is the unbroken one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import known_cloud as known
import openai
import pytest
from conftest import start
from cuts import AMONG, REGIONS, TOKENS, check_cut, cut_among_others, told

pytestmark = [pytest.mark.xdist_group("regions"), pytest.mark.timeout(300)]

POSITIONS = {"greedy": (0, 1, 2, 17, 60, 133, 199, 200), "sampled": (0, 40, 120, 198)}
"""Where CI cuts; `python bench/resume.py --sweep` cuts at every token."""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running = start(tmp_path_factory.mktemp("tour"), "--models", "smollm2-135m", "--regions", REGIONS)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def sdk(cloud: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cloud.url}/v1", api_key=cloud.key, max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture(scope="module")
def api(cloud: Any) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {cloud.key}"}
    with httpx.Client(base_url=cloud.url, headers=headers, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def unbroken(sdk: openai.OpenAI, api: httpx.Client) -> dict[str, str]:
    answers = {how: told(sdk, api, how, None) for how in POSITIONS}
    assert all(answer.tokens == TOKENS and len(answer.text) > TOKENS for answer in answers.values())
    assert answers["greedy"].text != answers["sampled"].text
    return {how: answer.text for how, answer in answers.items()}


@pytest.mark.parametrize("how, at", [(how, at) for how, places in POSITIONS.items() for at in places])
def test_the_region_is_killed_and_the_answer_is_the_unbroken_one(
    how: str, at: int, sdk: openai.OpenAI, api: httpx.Client, unbroken: dict[str, str]
) -> None:
    check_cut(api, told(sdk, api, how, at), unbroken[how], at)


async def test_no_token_is_lost_doubled_or_changed_among_thirty_two_other_streams(tmp_path: Any) -> None:
    flags, environment = known.options(AMONG)
    with known.engine(tmp_path, 0.03):
        cloud = await asyncio.to_thread(start, tmp_path, *flags, environment=environment)
        try:
            async with known.client(cloud.url, cloud.key) as http:
                await known.all_serve(http, AMONG)
                seen = [told for at in (1, 20, 59) for told in await cut_among_others(http, at)]
                wrong = [told for told in seen if not told.right]
                assert not wrong, wrong[0]
                ledger = await known.rows(http)
                known.check_books(seen, ledger)
                assert sum(bool(row["grade"]) for row in ledger) >= 3
        finally:
            cloud.close()
