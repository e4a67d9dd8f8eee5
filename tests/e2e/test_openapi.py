"""Schemathesis, which makes requests out of the served API description, finds no request that breaks the cloud."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

pytestmark = [pytest.mark.xdist_group("openapi"), pytest.mark.timeout(240)]

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"
EXAMPLES = 8
MODELS = {
    "ChatRequest": ["max"],
    "CompletionRequest": ["max"],
    "ResponsesRequest": ["max"],
    "MessagesRequest": ["max"],
    "CountRequest": ["max"],
    "EmbeddingsRequest": ["all-minilm-l6-v2"],
    "TranscriptionForm": ["whisper-tiny-en"],
    "SpeechRequest": ["hibari-heart"],
    "OcrRequest": ["rapidocr"],
}
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@pytest.fixture
def live(boot: Callable[..., Any]) -> Any:
    """A cloud of its own: what is made up here is not for other tests to meet. A small context ends long answers."""
    return boot(environment={"ATOLL_CONTEXT": "160"})


@pytest.fixture
def described(live: Any, tmp_path: Path) -> Path:
    """The served document, where `model` is one that exists and answers are short, so that requests reach engines."""
    document = httpx.get(f"{live.url}/openapi.json").json()
    schemas = document["components"]["schemas"]
    for name, ids in MODELS.items():
        schemas[name]["properties"]["model"] = {"type": "string", "enum": ids}
        if "messages" in schemas[name]["properties"]:
            schemas[name]["properties"]["messages"]["maxItems"] = 20
        for length in LENGTHS:
            if length in schemas[name]["properties"]:
                schemas[name]["properties"][length] = {"type": "integer", "minimum": 1, "maximum": 2}
                schemas[name].setdefault("required", []).append(length)
    schemas["SpeechRequest"]["properties"]["voice"] = {"type": "string", "enum": ["heart"]}
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    return path


def test_no_generated_request_is_answered_with_a_server_error(live: Any, described: Path, tmp_path: Path) -> None:
    """Nothing is left out: the key in use is never met among random ids, and a random source installs nothing."""
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", str(described), "--url", live.url),
        *("--header", f"Authorization: Bearer {live.key}", "--checks", CHECKS, "--seed", "1", "--no-shrink"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--continue-on-failure"),
        *("--report-har-path", str(tmp_path / "sent.har"), "--suppress-health-check", "all", "--no-color"),
        *("--request-timeout", "60", "--warnings", "off", "--workers", "2", "--generation-database", "none"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=dict(os.environ), text=True, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    sent = json.loads((tmp_path / "sent.har").read_text())["log"]["entries"]
    bodies, answers = Counter(), Counter()
    for entry in sent:
        request = entry["request"]
        operation = f"{request['method']} {urlsplit(request['url']).path}"
        bodies[operation] += bool(request.get("postData", {}).get("text"))
        answers[operation] += 200 <= entry["response"]["status"] < 300
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/v1/audio/speech"):
        assert bodies[f"POST {path}"] >= EXAMPLES, f"hardly a body was sent to {path}"
        assert answers[f"POST {path}"], f"no request to {path} was well-formed"


def test_every_route_is_described(live: Any) -> None:
    """A model route that is served but missing in the document would not be tried above."""
    paths = httpx.get(f"{live.url}/openapi.json").json()["paths"]
    served = {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models"),
        *("/v1/audio/transcriptions", "/v1/audio/speech", "/v1/messages", "/v1/messages/count_tokens"),
        "/atoll/v1/ocr",
    }
    assert served <= paths.keys()
    for path, operations in paths.items():
        for method in operations:
            reply = httpx.request(method, live.url + path.replace("{", "").replace("}", ""))
            assert reply.status_code != 405 and "unknown_path" not in reply.text, f"{method} {path} is not served"
