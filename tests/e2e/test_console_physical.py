"""The physical page of the console in headless Chromium, over a cloud that does the work: a pendulum is learned to
balance, passes its gate and is put into service."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Live, start
from console_browser import Console, launch, tab
from playwright.sync_api import Browser, expect, sync_playwright

pytestmark = [pytest.mark.xdist_group("live"), pytest.mark.timeout(300)]

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LEARN = {"name": "learn", "stage": "rl", "config": {"task": "inverted-pendulum", "steps": 60_000, "snapshots": 0}}
QUICK = {"mark": 100.0, "episodes": 30, "part": 10, "cheap": 5, "noises": [], "stress": [1.0], "videos": 1}
JUDGE = {"name": "judge", "stage": "validate", "config": QUICK, "inputs": {"policy": "learn"}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    running = start(tmp_path_factory.mktemp("physical"), "--models", "silero-vad")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def api(cloud: Live) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {cloud.key}"}
    with httpx.Client(base_url=f"{cloud.url}/atoll/v1", headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def done(api: httpx.Client) -> dict[str, Any]:
    """A run that learned and was judged."""
    made = api.post("/runs", json={"name": "balance", "steps": [LEARN, JUDGE]})
    assert made.status_code == 201, made.text
    return ended(api, made.json()["id"])


@pytest.fixture
def console(browser: Browser, cloud: Live) -> Iterator[Console]:
    with tab(browser, cloud.url, cloud.key) as opened:
        enter(opened)
        opened.go("physical")
        yield opened


def enter(console: Console) -> None:
    """Sign in to a cloud without a chat model."""
    console.open()
    console.page.get_by_label("API key").fill(console.key)
    console.page.get_by_role("button", name="Sign in").click()
    expect(console.page.locator(".shell")).to_be_attached()


def ended(api: httpx.Client, id: str, seconds: float = 150) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        row = api.get(f"/runs/{id}").json()
        if row["state"] not in {"queued", "running"}:
            return row
        assert time.monotonic() < deadline, row
        time.sleep(0.3)


def test_a_run_is_started_watched_cancelled_and_resumed(console: Console, api: httpx.Client) -> None:
    page = console.page
    page.get_by_role("button", name="New run").click()
    dialog = page.get_by_role("dialog", name="New run")
    dialog.get_by_label("What to do").select_option("stage:validate")
    expect(dialog.get_by_label("warp").locator("option")).to_have_text(["(as it is)", "true", "false"])
    dialog.get_by_label("What to do").select_option("stage:rl")
    expect(dialog.locator("summary")).to_have_text("rl")
    dialog.get_by_label("Seed").fill("7")
    dialog.get_by_label("task").fill("inverted-pendulum")
    dialog.get_by_label("steps").fill("-4")
    dialog.get_by_role("button", name="Start").click()
    expect(dialog.get_by_role("alert")).to_contain_text("steps[0].config.steps")
    console.expected.append("400")
    dialog.get_by_label("steps").fill("5000000")
    dialog.get_by_role("button", name="Start").click()
    panel = page.get_by_role("region", name="Run")
    expect(panel).to_contain_text("running", timeout=60_000)
    expect(panel).to_contain_text("seed 7")
    expect(panel.locator(".ends tbody tr")).not_to_have_count(0, timeout=60_000)
    panel.get_by_label("Figure").select_option("return")
    expect(panel.locator(".chart figcaption")).to_contain_text("return of rl")
    expect(panel.locator(".plot canvas")).to_be_visible()
    picture = panel.get_by_role("img", name="The simulation of rl now")
    expect(picture).to_be_visible(timeout=30_000)
    first = picture.get_attribute("src")
    expect(picture).not_to_have_attribute("src", first or "", timeout=30_000)
    panel.get_by_role("button", name="Cancel").click()
    expect(panel.get_by_role("button", name="Resume")).to_be_visible()
    expect(page.locator(".runs li.picked")).to_contain_text("cancelled")
    panel.get_by_role("button", name="Resume").click()
    expect(panel.get_by_role("button", name="Cancel")).to_be_visible()
    panel.get_by_role("button", name="Cancel").click()
    expect(panel.get_by_role("button", name="Resume")).to_be_visible()
    id = page.locator(".runs li.picked .run").get_attribute("data-id")
    assert api.get(f"/runs/{id}").json()["state"] == "cancelled"


def test_runs_are_compared(console: Console, api: httpx.Client, done: dict[str, Any]) -> None:
    other = ended(api, api.post("/runs", json={"name": "other", "seed": 1, "steps": [LEARN]}).json()["id"])
    page = console.page
    page.locator(f".run[data-id={done['id']}]").click()
    panel = page.get_by_role("region", name="Run")
    panel.get_by_role("button", name=re.compile("^learn")).click()
    expect(panel.locator(".ends thead th")).to_have_count(2)
    page.get_by_label(f"Compare other {other['id'].split('_')[-1]}").check()
    expect(panel.locator(".ends thead th")).to_have_count(3)
    expect(panel.locator(".chart li")).to_have_count(2)
    cells = panel.locator(".ends tbody tr", has_text="return").locator("td")
    expect(cells.nth(0)).to_have_text(re.compile(r"^\d"))
    assert cells.nth(0).text_content() != cells.nth(1).text_content()


def test_a_policy_that_passed_is_served(console: Console, api: httpx.Client, done: dict[str, Any]) -> None:
    assert done["state"] == "done", done["error"]
    page = console.page
    page.locator(f".run[data-id={done['id']}]").click()
    panel = page.get_by_role("region", name="Run")
    panel.get_by_role("button", name=re.compile("^judge")).click()
    expect(panel.locator(".verdict")).to_contain_text("Passed")
    expect(panel.locator(".checks tbody tr")).to_have_count(7)
    panel.get_by_role("button", name=re.compile("^Play: episode 0")).click()
    expect(panel.locator("video")).to_have_js_property("readyState", 4, timeout=20_000)
    panel.get_by_role("button", name="Promote").click()
    dialog = page.get_by_role("dialog", name="Promote")
    dialog.get_by_label("Name").fill("balance")
    dialog.get_by_role("button", name="Promote").click()
    card = page.locator(".card", has_text="balance")
    expect(card).to_contain_text(done["steps"][0]["digest"][:12])
    card.get_by_role("button", name="Emergency stop").click()
    token = page.get_by_role("dialog").locator("output").text_content() or ""
    page.get_by_role("button", name="I have saved it").click()
    expect(card).to_contain_text("Stopped by")
    card.get_by_role("button", name="Release").click()
    page.get_by_role("dialog").get_by_label("Token").fill(token)
    page.get_by_role("dialog").get_by_role("button", name="Release").click()
    expect(card.get_by_role("button", name="Emergency stop")).to_be_visible()
    assert [p["id"] for p in api.get("/policies").json()["data"]] == ["balance"]


def test_an_artifact_shows_its_lineage(console: Console, done: dict[str, Any]) -> None:
    page = console.page
    policy, report = (step["digest"][:12] for step in done["steps"])
    page.get_by_text("Artifacts", exact=True).click()
    page.get_by_role("button", name=f"report {report}").click()
    panel = page.get_by_role("region", name="Artifact")
    expect(panel.locator(".node")).to_have_count(2)
    expect(panel.locator(".lineage path")).to_have_count(1)
    with page.expect_download() as saved:
        panel.get_by_role("button", name="report.json").click()
    assert saved.value.suggested_filename == "report.json"
    panel.locator(".node", has_text=policy).click()
    expect(panel).to_contain_text("made by rl")
    expect(panel).to_contain_text("inverted-pendulum")


def test_for_a_phone_and_by_keyboard(browser: Browser, cloud: Live, done: dict[str, Any]) -> None:
    with tab(browser, cloud.url, cloud.key, width=360, height=740) as console:
        page = console.page
        enter(console)
        console.go("physical")
        page.locator(f".run[data-id={done['id']}]").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("region", name="Run")).to_contain_text("balance")
        assert console.too_wide() <= 0
        for name in ("Artifacts", "Policies"):
            page.get_by_text(name, exact=True).click()
            page.wait_for_timeout(300)
            assert console.too_wide() <= 0, name


def test_a_user_key_does_not_see_the_page(browser: Browser, cloud: Live) -> None:
    with httpx.Client(base_url=cloud.url, headers={"authorization": f"Bearer {cloud.key}"}) as client:
        secret = client.post("/atoll/v1/keys", json={"name": "looker"}).json()["secret"]
    with tab(browser, cloud.url, secret) as console:
        enter(console)
        expect(console.page.get_by_role("link", name="Physical")).to_have_count(0)


def picture_live(browser: Browser, cloud: Live, id: str) -> None:
    with tab(browser, cloud.url, cloud.key) as console:
        enter(console)
        console.go("physical")
        console.page.locator(f".run[data-id={id}]").click()
        expect(console.page.get_by_role("img", name="The simulation of show now")).to_be_visible(timeout=60_000)
        expect(console.page.locator(".ends")).to_be_visible(timeout=60_000)
        console.page.screenshot(path=IMAGES / "console-live-wide.png")


@pytest.mark.parametrize(
    ("look", "size", "theme"),
    [("wide", (1440, 900), "light"), ("phone", (390, 844), "light"), ("dark", (1440, 900), "dark")],
)
def test_screenshots(
    browser: Browser,
    cloud: Live,
    api: httpx.Client,
    done: dict[str, Any],
    tmp_path: Path,
    look: str,
    size: tuple[int, int],
    theme: str,
) -> None:
    """A run, its gate and its lineage; of the whole loop, into docs/images, when ATOLL_SCREENSHOTS is set."""
    folder, shown = tmp_path, done
    if os.environ.get("ATOLL_SCREENSHOTS"):
        folder = IMAGES
        known = [row for row in api.get("/runs").json()["data"] if row["name"] == "pick-place"]
        id = known[0]["id"] if known else api.post("/runs", json={"recipe": "pick-place"}).json()["id"]
        if not known:
            picture_live(browser, cloud, id)
        shown = ended(api, id, 900)
    with tab(browser, cloud.url, cloud.key, width=size[0], height=size[1], theme=theme) as console:
        enter(console)
        console.go("physical")
        page = console.page

        def keep(name: str) -> None:
            page.wait_for_timeout(800)
            path = folder / f"console-{name}-{look}.png"
            page.screenshot(path=path)
            assert 5_000 < path.stat().st_size < 400_000

        page.locator(f".run[data-id={shown['id']}]").click()
        panel = page.get_by_role("region", name="Run")
        panel.locator(".step").nth(len(shown["steps"]) - 3 if len(shown["steps"]) > 2 else 0).click()
        expect(panel.locator(".plot canvas")).to_be_visible()
        keep("physical")
        panel.locator(".step", has_text="judge").click()
        expect(panel.locator(".verdict")).to_contain_text("Passed")
        keep("gate")
        page.get_by_text("Artifacts", exact=True).click()
        page.get_by_role("button", name=re.compile("^report ")).first.click()
        expect(page.locator(".lineage .node").first).to_be_visible()
        keep("lineage")
