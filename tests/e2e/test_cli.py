"""Every command of the command line against a real cloud, as a user types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import start
from hub_server import HubServer, serving
from terminals import Terminal

pytestmark = pytest.mark.xdist_group("cli")

ATOLL = [sys.executable, "-m", "atoll.cli"]
REPO = "owner/tiny-GGUF"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One with the language model alone, whose hub is the test's."""
    data = tmp_path_factory.mktemp("cli")
    with serving(HubServer(repo=REPO)) as hub:
        running = start(
            data, "--models", "smollm2-135m", environment={"ATOLL_HUB_URL": hub.url, "HF_TOKEN": "", "FAR_KEY": "x"}
        )
        running.hub = hub
        yield running
        running.close()


@pytest.fixture(scope="module")
def weights(cloud: Any) -> Path:
    """The embedded model's file."""
    findings = told(run(cloud, "doctor", "--quick", "--json"))["findings"]
    place = next(f["detail"] for f in findings if f["name"] == "model smollm2-135m")
    return next(Path(place).glob("*.gguf"))


def run(
    cloud: Any, *arguments: str, stdin: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ATOLL_DATA": str(cloud.data), **(environment or {})}
    return subprocess.run([*ATOLL, *arguments], capture_output=True, text=True, input=stdin, env=env, timeout=120)


def told(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str], said: str, code: int = 1) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_quick_and_names_the_commands() -> None:
    began = time.perf_counter()
    done = subprocess.run([*ATOLL, "--help"], capture_output=True, text=True, timeout=30)
    assert time.perf_counter() - began < 3
    for name in ("up", "down", "status", "chat", "models", "keys", "usage", "doctor", "bench"):
        assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE)
    code = "import sys, atoll.cli; print([m for m in ('rich','httpx','asyncio','atoll.app') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]"


def test_status(cloud: Any) -> None:
    value = told(run(cloud, "status", "--json"))
    assert value["pid"] == cloud.process.pid and value["store"] == "sqlite"
    assert [m["id"] for m in value["models"] if m["state"] == "ready"] == ["smollm2-135m"]
    assert "smollm2-135m  chat  ready" in run(cloud, "status").stdout


def test_over_tcp_with_a_key(cloud: Any, tmp_path: Path) -> None:
    elsewhere = {"ATOLL_URL": cloud.url, "ATOLL_API_KEY": cloud.key, "ATOLL_DATA": str(tmp_path)}
    assert told(run(cloud, "status", "--json", environment=elsewhere))["pid"] == cloud.process.pid
    bad = run(cloud, "keys", "list", "--url", cloud.url, "--key", "sk-atoll-wrong", "--json")
    assert told(bad, 1)["error"]["code"] == "invalid_api_key"
    refused(bad, "^atoll: ")
    refused(run(cloud, "status", "--url", "http://127.0.0.1:9", "--key", "x"), "no cloud answers at http://127.0.0.1:9")
    refused(run(cloud, "status", "--url", "http://u:p@127.0.0.1"), r"not an http\(s\) address without a user name")


@pytest.mark.parametrize("command", [["status"], ["chat", "hi"], ["models", "list"], ["keys", "list"], ["usage"],
                                     ["bench"], ["down"]], ids=lambda c: c[0])  # fmt: skip
def test_nothing_runs(cloud: Any, tmp_path: Path, command: list[str]) -> None:
    refused(run(cloud, *command, "--data", str(tmp_path)), "no cloud runs here.*'atoll up'.*make up")
    told(run(cloud, *command, "--data", str(tmp_path), "--json"), 1)


@pytest.mark.parametrize(
    "command",
    [["nope"], ["models", "use", "mid", "x"], ["keys", "limit", "key_x"], ["keys", "create", "x", "--budget", "much"],
     ["chat"], ["chat", "--json"], ["usage", "--days", "0"], ["keys", "create"]],
)  # fmt: skip
def test_usage_errors_are_2(cloud: Any, command: list[str]) -> None:
    refused(run(cloud, *command), "Usage:|Error:", 2)


def test_chat_answers_once(cloud: Any) -> None:
    value = told(run(cloud, "chat", "Say hello", "--json", "--max-tokens", "8", "--temperature", "0"))
    assert value["model"] == "smollm2-135m" and value["content"] and value["usage"]["completion_tokens"] <= 8
    assert value["first_token_ms"] > 0
    shown = run(cloud, "chat", "Say hello", "--max-tokens", "8", "--temperature", "0")
    assert shown.stdout == value["content"] + "\n" and not shown.stderr


def test_chat_reads_standard_input_and_a_system_message(cloud: Any) -> None:
    short = told(run(cloud, "chat", "Hi", "--json", "--max-tokens", "4"))["usage"]["prompt_tokens"]
    longer = run(cloud, "chat", "Hi", "--json", "--max-tokens", "4", stdin="many more words in a pipe")
    assert told(longer)["usage"]["prompt_tokens"] > short
    alone = told(run(cloud, "chat", "--json", "--max-tokens", "4", stdin="Hi"))["usage"]["prompt_tokens"]
    assert alone == short
    system = run(cloud, "chat", "Hi", "--json", "--max-tokens", "4", "-s", "You are a pirate who says arr, all day.")
    assert told(system)["usage"]["prompt_tokens"] != short


def test_chat_names_what_is_wrong(cloud: Any, tmp_path: Path) -> None:
    refused(run(cloud, "chat", "hi", "-m", "nix"), r"atoll: model 'nix' does not exist.* \(model\)")
    refused(run(cloud, "chat", "hi", "--temperature", "9"), r"\(temperature\)")
    refused(run(cloud, "chat", "hi", "--think"), r"\(reasoning_effort\)")
    picture = tmp_path / "a.png"
    refused(run(cloud, "chat", "hi", "--image", str(picture)), r"cannot read .*a.png.* \(image\)")
    picture.write_bytes(b"\x89PNG")
    refused(run(cloud, "chat", "hi", "--image", str(picture)), "takes text as input, not image")
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"RIFF")
    refused(run(cloud, "chat", "hi", "--audio", str(sound)), "takes text as input, not audio")
    refused(run(cloud, "chat", "hi", "--audio", str(picture)), r"sounds end in .* \(audio\)")


@pytest.fixture
def terminal(cloud: Any) -> Iterator[Terminal]:
    chat = ("chat", "--temperature", "0", "--max-tokens", "300")
    opened = Terminal(*chat, ATOLL_DATA=str(cloud.data), TERM="dumb")
    yield opened
    opened.close()


def test_a_conversation_at_the_terminal(cloud: Any, terminal: Terminal) -> None:
    terminal.until(r"Talking to max.*\n\s*> ")
    time.sleep(0.5)  # the line editor is listening a moment after its prompt shows
    terminal.interrupt()
    terminal.until(r"Ctrl-D or /exit leaves\)\s*> ")
    terminal.type("/help")
    terminal.until(r"/clear[\s\S]*\n\s*> ")
    terminal.type("/model nix")
    terminal.until(r"atoll: .*'nix'[\s\S]*> ")
    terminal.type("/model smollm2-135m")
    terminal.until(r"Now talking to smollm2-135m\.\s*> ")
    terminal.type("Tell me a long story about the sea.")
    terminal.until(r"\r\n\S+ \S+ \S+ \S+")
    terminal.interrupt()
    terminal.until(r"\(stopped\)\s*> ")
    deadline = time.monotonic() + 5
    while told(run(cloud, "status", "--json"))["running"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert told(run(cloud, "status", "--json"))["running"] == 0
    terminal.type("/clear")
    terminal.until(r"begins anew\.\s*> ")
    terminal.type("/exit")
    assert terminal.process.wait(10) == 0


def test_a_one_shot_answer_is_stopped_with_ctrl_c(cloud: Any) -> None:
    env = {**os.environ, "ATOLL_DATA": str(cloud.data)}
    argv = [*ATOLL, "chat", "Write a long story", "--max-tokens", "2000", "--temperature", "0"]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True
    )
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and b"Traceback" not in said


def test_models_are_listed_and_shown(cloud: Any) -> None:
    listed = {m["id"]: m for m in told(run(cloud, "models", "list", "--json"))["data"]}
    assert listed["max"]["root"] == "smollm2-135m"
    assert "max -> smollm2-135m" in run(cloud, "models", "list").stdout
    assert told(run(cloud, "models", "show", "smollm2-135m", "--json")) == listed["smollm2-135m"]
    assert "Apache-2.0" in run(cloud, "models", "show", "smollm2-135m").stdout
    refused(run(cloud, "models", "show", "../status"), "does not exist")
    names = {m["id"]: m for m in told(run(cloud, "models", "catalogue", "--json"))["data"]}
    assert names["qwen3-4b"]["memory_bytes"] > names["qwen3-4b"]["download_bytes"]
    assert re.search(r"qwen3-4b +2\.5 GB +\S+ GB +(yes|no) +Apache-2.0", run(cloud, "models", "catalogue").stdout)


def test_a_file_is_added_used_and_removed(cloud: Any, weights: Path) -> None:
    relative = os.path.relpath(weights)
    value = told(run(cloud, "models", "add", relative, "--id", "mine", "--context", "512", "--json"))
    assert value["model"]["id"] == "mine" and value["model"]["context"] == 512
    assert told(run(cloud, "chat", "hi", "-m", "mine", "--max-tokens", "4", "--json"))["model"] == "mine"
    refused(run(cloud, "models", "add", relative, "--id", "mine"), r"a model 'mine' already.* \(id\)")
    assert told(run(cloud, "models", "use", "max", "mine", "--json")) == {"tier": "max", "model": "mine"}
    assert told(run(cloud, "chat", "hi", "--max-tokens", "4", "--json"))["model"] == "mine"
    refused(run(cloud, "models", "remove", "mine"), "stands behind 'max'")
    assert "'max' now means smollm2-135m." in run(cloud, "models", "use", "max", "smollm2-135m").stdout
    assert "mine is removed" in run(cloud, "models", "remove", "mine").stdout
    refused(run(cloud, "chat", "hi", "-m", "mine"), "'mine' does not exist")
    assert weights.exists()


def test_a_repository_is_added_with_progress(cloud: Any, weights: Path) -> None:
    cloud.hub.files = {"tiny-Q4_K_M.gguf": weights.read_bytes(), "tiny-Q8_0.gguf": b"GGUF"}
    done = run(cloud, "models", "add", f"hf:{REPO}", "--id", "tiny", "--context", "256")
    assert done.returncode == 0 and "tiny is ready" in done.stdout, done.stderr
    assert told(run(cloud, "models", "show", "tiny", "--json"))["licence"] == "apache-2.0"
    run(cloud, "models", "remove", "tiny")
    refused(run(cloud, "models", "add", f"hf:{REPO}:Q2_K"), "tiny-Q4_K_M.gguf.*tiny-Q8_0.gguf")


def test_another_cloud_is_added_by_its_address(cloud: Any) -> None:
    refused(run(cloud, "models", "add", cloud.url, "--id", "far"), r"refuses the key.* \(key_env\)")
    refused(run(cloud, "models", "add", cloud.url, "--id", "far", "--key-env", "NOT_SET"), "NOT_SET is not set")


def test_another_cloud_answers_through_this_one(cloud: Any, boot: Callable[..., Any], tmp_path: Path) -> None:
    near = boot("--models", "smollm2-135m", data=tmp_path / "near", environment={"FAR_ATOLL_KEY": cloud.key})
    done = run(near, "models", "add", f"{cloud.url}/v1", "--model", "smollm2-135m", "--id", "far",
               "--key-env", "FAR_ATOLL_KEY", "--json")  # fmt: skip
    model = told(done)["model"]
    assert (model["engine"], model["context"], model["title"]) == ("remote", 8192, "SmolLM2 135M Instruct")
    assert told(run(near, "chat", "hi", "-m", "far", "--max-tokens", "4", "--json"))["content"]
    assert cloud.key not in (near.data / "models" / "far.toml").read_text()
    assert "far" in [r["model"] for r in told(run(near, "usage", "--json"))["rows"]]


def test_keys(cloud: Any) -> None:
    made = told(run(cloud, "keys", "create", "bob", "--budget", "2", "--requests-per-minute", "5", "--json"))
    assert made["secret"].startswith("sk-atoll-") and made["limits"]["budget_per_month"] == 2
    limits = told(run(cloud, "keys", "limit", made["id"], "--budget", "none", "--tokens-per-minute", "9", "--json"))
    assert limits["limits"] == {"requests_per_minute": 5, "tokens_per_minute": 9, "budget_per_month": None}
    assert "bob" in run(cloud, "keys", "list").stdout
    theirs = {"ATOLL_URL": cloud.url, "ATOLL_API_KEY": made["secret"]}
    refused(run(cloud, "keys", "list", environment=theirs), "role 'admin'")
    assert "revoked" in run(cloud, "keys", "revoke", made["id"]).stdout
    assert made["id"] not in [k["id"] for k in told(run(cloud, "keys", "list", "--json"))["data"]]
    assert made["id"] in [k["id"] for k in told(run(cloud, "keys", "list", "--all", "--json"))["data"]]
    refused(run(cloud, "status", environment=theirs), "atoll: ")
    alone = run(cloud, "keys", "create", "for a script", "--days", "1")
    assert re.fullmatch(r"sk-atoll-\S+\n", alone.stdout) and "not shown again" in alone.stderr


def test_usage_adds_up(cloud: Any) -> None:
    told(run(cloud, "chat", "hi", "--max-tokens", "4", "--json"))
    value = told(run(cloud, "usage", "--json"))
    for name in ("by_day", "by_key_id", "by_model"):
        assert sum(group["output"] for group in value[name]) == value["total"]["output"] > 0
    assert value["total"]["requests"] == sum(row["requests"] for row in value["rows"])
    shown = run(cloud, "usage").stdout
    assert re.search(rf"^total +{value['total']['requests']} ", shown, re.MULTILINE) and "operator" in shown
    assert "Nothing was used" in run(cloud, "usage", "--key-id", "key_none").stdout


def test_bench(cloud: Any) -> None:
    one, four = told(run(cloud, "bench", "--rounds", "1", "--tokens", "16", "--json"))["results"]
    assert (one["clients"], four["clients"], four["answers"]) == (1, 4, 4)
    assert one["tokens"] > 0 and four["tokens_per_second"] > 0 and four["first_token_ms_p50"] > 0


def test_doctor_finds_nothing_wrong(cloud: Any) -> None:
    value = told(run(cloud, "doctor", "--json"))
    found = {f["name"]: f for f in value["findings"]}
    assert value["ok"] and str(cloud.process.pid) in found["port"]["detail"]
    assert found["database"]["detail"].endswith("every page is sound")
    assert found["model smollm2-135m"]["detail"].endswith("digests match")
    assert "ok      llama.cpp: loads" in run(cloud, "doctor", "--quick").stdout


def test_doctor_says_what_is_broken(cloud: Any, tmp_path: Path, weights: Path) -> None:
    cache = tmp_path / "weights" / weights.parent.name
    cache.mkdir(parents=True)
    for path in weights.parent.iterdir():
        if path.is_file():
            (cache / path.name).write_bytes(path.read_bytes())
    with (cache / weights.name).open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"damage")
    (tmp_path / "atoll.db").write_bytes(b"not a database" * 1000)
    port = cloud.url.rpartition(":")[2]
    env = {"ATOLL_DATA": str(tmp_path), "ATOLL_WEIGHTS": str(tmp_path / "weights"), "ATOLL_PORT": port}
    done = run(cloud, "doctor", "--json", environment=env)
    broken = {f["name"]: f for f in told(done, 1)["findings"] if f["state"] == "broken"}
    assert set(broken) == {"port", "database", "model smollm2-135m"}
    assert "restore a backup" in broken["database"]["advice"]
    assert "damaged" in broken["model smollm2-135m"]["detail"] and "cannot listen" in broken["port"]["detail"]
    env["ATOLL_STORE"] = "postgresql://nobody@127.0.0.1:9/none"
    database = {f["name"]: f for f in told(run(cloud, "doctor", "--quick", "--json", environment=env), 1)["findings"]}
    assert database["database"]["detail"].startswith("PostgreSQL: ")


def test_a_bad_setting_is_named(cloud: Any) -> None:
    refused(run(cloud, "status", environment={"ATOLL_PORT": "many"}), "'port' must be int")


def test_down_ends_it(boot: Callable[..., Any], tmp_path: Path) -> None:
    short = boot("--models", "smollm2-135m", data=tmp_path / "short")
    assert told(run(short, "down", "--json")) == {"stopped": short.process.pid}
    assert short.process.wait(5) == 0
    refused(run(short, "down"), "no cloud runs here")
    assert not (short.data / "atoll.sock").exists()
