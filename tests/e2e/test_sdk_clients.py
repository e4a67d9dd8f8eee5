"""Clients in environments of their own: OpenAI's Node SDK, LiteLLM, and the `llm` command."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clients.environments import HERE, node_environment, python_environment

pytestmark = [pytest.mark.xdist_group("live"), pytest.mark.timeout(900)]


def told(command: list[str], live: Any, cwd: Path, **more: str) -> str:
    """What the client prints."""
    environment = {**os.environ, "ATOLL_URL": live.url, "ATOLL_KEY": live.key, **more}
    done = subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{2,}", text.lower()))


def test_node_sdk(live: Any) -> None:
    home = node_environment()
    seen = json.loads(told(["node", "tour.mjs"], live, home))
    assert {"max", "smollm2-135m"} <= set(seen["models"])
    assert words(seen["chat"]["text"]) and seen["stream"]["text"] == seen["chat"]["text"]
    assert seen["stream"]["pieces"] > 3
    assert seen["stream"]["usage"]["completion_tokens"] == seen["chat"]["usage"]["completion_tokens"]
    assert seen["tool"]["name"] == "get_weather" and isinstance(seen["tool"]["arguments"]["city"], str)
    assert seen["schema"]["mood"] in {"good", "bad"} and seen["schema"]["stars"] in {1, 2, 3}
    assert seen["responses"]["text"] and seen["responses"]["first"] == "response.created"
    assert seen["responses"]["last"] in {"response.completed", "response.incomplete"}
    assert seen["embeddings"] == [384, 384]
    assert len(words(seen["audio"]["heard"]) & words("the quick brown fox jumps over the lazy dog")) >= 6
    assert seen["refused"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}


def test_litellm_over_both_apis(live: Any, tmp_path: Path) -> None:
    place = python_environment("litellm")
    script = str(HERE / "litellm_tour.py")
    printed = told([str(place / "python"), script], live, tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True")
    seen = json.loads(printed.splitlines()[-1])
    for route in ("openai", "anthropic"):
        assert words(seen[route]["say"]["text"]) and 1 <= seen[route]["say"]["output"] <= 24
        assert words(seen[route]["stream"]["text"]) and seen[route]["stream"]["pieces"] > 3
        assert seen[route]["tool"]["name"] == "get_weather"
        assert isinstance(seen[route]["tool"]["arguments"]["city"], str)
    assert seen["embeddings"] == [384, 384] and seen["refused"] == "NotFoundError"


EXTRA_MODEL = """\
- model_id: atoll
  model_name: max
  api_base: {url}/v1
  api_key_name: atoll
  supports_tools: true
  supports_schema: true
"""


def test_llm_command(live: Any, tmp_path: Path) -> None:
    llm = str(python_environment("llm") / "llm")
    (tmp_path / "extra-openai-models.yaml").write_text(EXTRA_MODEL.format(url=live.url))
    (tmp_path / "keys.json").write_text(json.dumps({"atoll": live.key}))

    def ask(*options: str) -> str:
        command = [llm, "-m", "atoll", "-o", "max_tokens", "100", *options]
        return told(command, live, tmp_path, LLM_USER_PATH=str(tmp_path))

    assert words(ask("Write one short sentence about the sea."))
    assert words(ask("--no-stream", "--system", "You are a sailor.", "Write one short sentence about the sea."))
    assert words(ask("-c", "Say it in other words."))
    shaped = json.loads(ask("--schema", "stars int, good bool", "Rate this: 'Lovely soup.'"))
    assert isinstance(shaped["stars"], int) and isinstance(shaped["good"], bool)
