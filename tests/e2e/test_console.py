"""The console in headless Chromium before the real cloud with its embedded models."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Live
from console_browser import PAGES, SPOKEN, Console, launch, speech, tab
from console_steps import brightness, drop_image, furnish, painted, picture, reach, say
from playwright.sync_api import Browser, expect, sync_playwright

import atoll.console

pytestmark = [pytest.mark.xdist_group("live"), pytest.mark.timeout(300)]

FILES = Path(atoll.console.__file__).parent
IMAGES = Path(__file__).parents[2] / "docs" / "images"
ANSWER_MS = 60_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = launch(playwright, speech(tmp_path_factory.mktemp("voice")))
        yield running
        running.close()


@pytest.fixture
def console(browser: Browser, live: Live) -> Iterator[Console]:
    with tab(browser, live.url, live.key) as opened:
        yield opened


@pytest.fixture
def api(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, headers={"authorization": f"Bearer {live.key}"}, timeout=60) as client:
        yield client


class TestSignIn:
    def test_a_wrong_key_is_refused_with_the_reason(self, console: Console) -> None:
        console.expected.append("401")
        console.open()
        console.page.get_by_label("API key").fill("sk-atoll-wrong")
        console.page.get_by_role("button", name="Sign in").click()
        expect(console.page.get_by_role("alert")).to_contain_text("key")
        expect(console.page.get_by_label("API key")).to_be_visible()

    def test_the_key_lasts_as_long_as_the_tab(self, console: Console) -> None:
        console.sign_in()
        console.page.reload()
        expect(console.page.get_by_role("textbox", name="Message")).to_be_visible()
        second = console.page.context.new_page()
        second.goto(console.url)
        expect(second.get_by_label("API key")).to_be_visible()

    def test_remembered_until_signed_out(self, console: Console) -> None:
        console.open()
        console.page.get_by_label("API key").fill(console.key)
        console.page.get_by_label("Remember on this device").check()
        console.page.get_by_role("button", name="Sign in").click()
        expect(console.page.get_by_role("textbox", name="Message")).to_be_visible()
        second = console.page.context.new_page()
        second.goto(console.url)
        expect(second.get_by_role("textbox", name="Message")).to_be_visible()
        second.get_by_role("button", name="Sign out").click()
        expect(second.get_by_label("API key")).to_be_visible()
        second.reload()
        expect(second.get_by_label("API key")).to_be_visible()


class TestChat:
    def test_an_answer_streams_and_shows_what_it_took(self, console: Console) -> None:
        console.sign_in()
        console.limit_answers(80)
        console.page.evaluate(
            """() => { window.lengths = [];
            new MutationObserver(() => lengths.push(document.querySelector('.markdown')?.textContent.length ?? 0))
              .observe(document.querySelector('main'), {subtree: true, childList: true, characterData: true}); }"""
        )
        console.ask("Write four sentences about the sea.")
        facts = console.page.locator(".facts").last
        expect(facts).to_contain_text("tokens/s", timeout=ANSWER_MS)
        expect(facts).to_contain_text(re.compile(r"\d+ in, \d+ out"))
        expect(facts).to_contain_text(re.compile(r"\$0\.0000\d+"))
        lengths = [n for n in console.page.evaluate("window.lengths") if n]
        assert len(set(lengths)) >= 5, "the answer must grow step by step"
        assert console.page.get_by_test_id("announcer").text_content()

    def test_the_demonstration_model_says_so(self, console: Console) -> None:
        console.sign_in()
        console.page.get_by_label("Model", exact=True).select_option("max")
        expect(console.page.locator(".model-note")).to_contain_text(re.compile("demonstration model", re.IGNORECASE))

    def test_stop_ends_the_answer_and_frees_the_slot(self, console: Console, api: httpx.Client) -> None:
        console.sign_in()
        console.ask("Write a very long story about a sailor, in twenty chapters.")
        expect(console.page.locator(".answer .markdown")).to_contain_text(re.compile(r"\w+ \w+"), timeout=ANSWER_MS)
        console.page.get_by_role("button", name="Stop", exact=True).click()
        expect(console.page.locator(".facts")).to_contain_text("stopped")
        expect(console.page.get_by_role("button", name="Send")).to_be_visible()
        deadline = time.monotonic() + 10
        while api.get("/atoll/v1/requests", params={"limit": 1}).json()["data"][0]["status"] != "cancelled":
            assert time.monotonic() < deadline, "the stopped request must end as cancelled"
            time.sleep(0.1)

    def test_settings_reach_the_model(self, console: Console) -> None:
        console.sign_in()
        console.page.get_by_role("button", name="Chat settings").click()
        console.page.get_by_label("System prompt").fill("You are a pirate.")
        console.page.get_by_label("Temperature").fill("0")
        console.page.get_by_label("Max tokens").fill("6")
        console.page.get_by_role("button", name="Done").click()
        with console.page.expect_request("**/v1/chat/completions") as asked:
            console.ask("Who are you?")
        body = asked.value.post_data_json
        assert body["messages"][0] == {"role": "system", "content": "You are a pirate."}
        assert (body["temperature"], body["max_tokens"]) == (0, 6)
        expect(console.page.locator(".facts")).to_contain_text("cut at the token limit", timeout=ANSWER_MS)

    def test_an_error_of_the_api_names_its_field(self, console: Console) -> None:
        console.expected.append("400")
        console.sign_in()
        console.page.evaluate("localStorage.setItem('atoll.chat', JSON.stringify({maxTokens: 1000000}))")
        console.page.reload()
        console.ask("Hello")
        alert = console.page.get_by_role("alert")
        expect(alert).to_contain_text("max_tokens is 1000000")
        expect(alert.locator("code")).to_have_text("max_tokens")

    def test_output_of_a_model_cannot_act(self, console: Console) -> None:
        console.sign_in()
        shown = console.page.evaluate(
            """async () => { const { render } = await import('/console/markdown.js');
            const box = document.createElement('div');
            box.append(render('**bold** <img src=x onerror="window.hit=1"> [go](javascript:window.hit=1)'
              + ' ![pic](https://example.com/a.png) <p style="color:red">raw</p>\\n\\n[safe](https://example.com/)'));
            document.body.append(box);
            return box.innerHTML; }"""
        )
        assert "<strong>bold</strong>" in shown
        assert 'rel="noopener noreferrer"' in shown and 'href="https://example.com/"' in shown
        for danger in ("<img", "<p style", "javascript:"):
            assert danger not in shown
        assert console.page.evaluate("window.hit") is None

    def test_read_aloud(self, console: Console) -> None:
        console.sign_in()
        console.limit_answers(12)
        console.ask("Say good morning.")
        with console.page.expect_response("**/v1/audio/speech", timeout=ANSWER_MS) as spoken:
            console.page.get_by_role("button", name="Read aloud").click(timeout=ANSWER_MS)
        assert spoken.value.headers["content-type"].startswith("audio/")
        expect(console.page.get_by_role("button", name="Stop reading")).to_be_visible()
        expect(console.page.get_by_role("button", name="Read aloud")).to_be_visible(timeout=ANSWER_MS)

    def test_voice_becomes_text(self, console: Console) -> None:
        console.sign_in()
        console.page.get_by_role("button", name="Speak").click()
        expect(console.page.get_by_role("button", name="Stop recording")).to_be_visible()
        console.page.wait_for_timeout(4000)
        console.page.get_by_role("button", name="Stop recording").click()
        box = console.page.get_by_role("textbox", name="Message")
        expect(box).to_have_value(re.compile("island", re.IGNORECASE), timeout=ANSWER_MS)
        heard = re.findall(r"[a-z]+", box.input_value().lower())
        missed = [word for word in SPOKEN.lower().split() if word not in heard]
        assert len(missed) <= 2, f"heard {heard}"

    def test_voice_as_sound_for_a_model_that_hears(self, console: Console) -> None:
        console.sign_in()
        console.page.get_by_label("Model", exact=True).select_option("omni")
        console.page.get_by_role("button", name="Chat settings").click()
        console.page.get_by_text("sound", exact=True).click()
        console.page.get_by_label("Max tokens").fill("20")
        console.page.get_by_role("button", name="Done").click()
        console.page.get_by_role("button", name="Speak").click()
        expect(console.page.get_by_role("button", name="Stop recording")).to_be_visible()
        console.page.wait_for_timeout(3500)
        console.page.get_by_role("button", name="Stop recording").click()
        with console.page.expect_request("**/v1/chat/completions") as asked:
            console.page.get_by_role("button", name="Send").click()
        part = asked.value.post_data_json["messages"][0]["content"][0]
        assert part["type"] == "input_audio" and part["input_audio"]["format"] == "wav"
        expect(console.page.locator(".facts")).to_contain_text("tokens", timeout=ANSWER_MS)

    def test_thinking_is_asked_for_only_where_it_can_be_switched(self, console: Console) -> None:
        console.sign_in()
        ask = """async ([has, on]) => { const { request } = await import('/console/conversation.js');
            return request([], {system: '', temperature: '', maxTokens: '', thinking: on},
              {id: 'm', parameters: [], thinking: has}).reasoning_effort ?? null; }"""
        asked = [console.page.evaluate(ask, [has, on]) for has in ("none", "switch", "always") for on in (False, True)]
        assert asked == [None, None, "none", "medium", None, None]

    def test_an_image_for_a_model_that_cannot_see_is_explained(self, console: Console) -> None:
        console.sign_in()
        console.page.get_by_label("Model", exact=True).select_option("smollm2-135m")
        drop_image(console)
        expect(console.page.get_by_role("alert")).to_contain_text("does not take images")

    def test_an_image_goes_to_a_model_that_sees(self, console: Console) -> None:
        console.sign_in()
        console.page.get_by_label("Model", exact=True).select_option("omni")
        with console.page.expect_file_chooser() as chosen:
            console.page.get_by_role("button", name="Add an image").click()
        chosen.value.set_files({"name": "sign.png", "mimeType": "image/png", "buffer": picture(console)})
        expect(console.page.get_by_role("img", name="sign.png")).to_be_visible()
        with console.page.expect_request("**/v1/chat/completions") as asked:
            console.ask("What is written in the picture?")
        parts = asked.value.post_data_json["messages"][0]["content"]
        assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
        expect(console.page.locator(".facts")).to_contain_text("tokens/s", timeout=ANSWER_MS)
        drop_image(console)
        expect(console.page.get_by_role("img", name="dropped.png")).to_be_visible()


class TestKeys:
    def test_a_key_from_creation_to_revocation(self, console: Console, live: Live, api: httpx.Client) -> None:
        page = console.page
        console.sign_in()
        console.go("keys")
        page.get_by_role("button", name="Create key").click()
        page.get_by_label("Name").fill("parrot")
        page.get_by_label("Budget per month").fill("2.5")
        page.get_by_role("button", name="Create", exact=True).click()
        secret = page.get_by_test_id("secret").text_content() or ""
        assert secret.startswith("sk-atoll-")
        page.get_by_role("button", name="I have saved it").click()
        expect(page.get_by_text(secret)).to_have_count(0)
        page.reload()
        card = page.locator(".card", has_text="parrot")
        expect(card).to_contain_text("of $2.50 this month")
        assert secret not in page.content()
        as_parrot = {"authorization": f"Bearer {secret}"}
        assert httpx.get(f"{live.url}/v1/models", headers=as_parrot).status_code == 200

        page.get_by_role("button", name="Edit limits of parrot").click()
        page.get_by_label("Requests per minute").fill("7")
        page.get_by_label("Budget per month").fill("")
        page.get_by_role("button", name="Save").click()
        expect(card).to_contain_text("7 requests/min")
        kept = next(k for k in api.get("/atoll/v1/keys").json()["data"] if k["name"] == "parrot")
        assert kept["limits"] == {"requests_per_minute": 7, "tokens_per_minute": None, "budget_per_month": None}

        page.get_by_role("button", name="Revoke parrot").click()
        page.get_by_role("button", name="Revoke", exact=True).click()
        expect(card).to_contain_text("revoked")
        assert httpx.get(f"{live.url}/v1/models", headers=as_parrot).status_code == 401

    def test_a_bad_limit_is_shown_at_its_field(self, console: Console) -> None:
        console.expected.append("400")
        console.sign_in()
        console.go("keys")
        console.page.get_by_role("button", name="Create key").click()
        console.page.get_by_label("Name").fill("too rich")
        console.page.get_by_label("Budget per month").fill("99000000")
        console.page.get_by_role("button", name="Create", exact=True).click()
        field = console.page.locator(".field", has_text="Budget per month")
        expect(field.get_by_role("alert")).to_contain_text("9000000")

    def test_a_user_key_sees_no_keys_page(self, browser: Browser, live: Live, api: httpx.Client) -> None:
        made = api.post("/atoll/v1/keys", json={"name": "deckhand"}).json()
        with tab(browser, live.url, made["secret"]) as console:
            console.sign_in()
            links = console.page.get_by_role("navigation").get_by_role("link")
            expect(links).to_have_text(["Chat", "Usage", "Requests", "Models", "Map", "Status"])
            console.page.goto(f"{live.url}/#/models")
            expect(console.page.get_by_role("heading", name="Catalogue")).to_be_visible()
            expect(console.page.get_by_role("button", name="Add model")).to_have_count(0)


class TestUsageAndRequests:
    def test_usage_counts_a_request(self, console: Console, api: httpx.Client) -> None:
        say(api)
        console.sign_in()
        console.go("usage")
        total = console.page.locator(".totals dd").first
        before = int((total.text_content() or "").replace(",", ""))
        assert before >= 1
        say(api)
        console.page.reload()
        expect(total).to_have_text(f"{before + 1:,}")
        expect(console.page.get_by_role("rowheader", name="smollm2-135m")).to_be_visible()
        assert painted(console) > 50
        console.page.get_by_text("by key", exact=True).click()
        expect(console.page.get_by_role("rowheader", name="first admin")).to_be_visible()
        console.page.get_by_text("7 days").click()
        console.page.get_by_text("Cost", exact=True).first.click()
        expect(console.page.locator(".plot canvas")).to_be_visible()

    def test_a_request_appears_while_it_runs(self, console: Console, live: Live) -> None:
        console.sign_in()
        console.go("requests")
        expect(console.page.locator(".page-head [role=status]")).to_contain_text("live")
        rows = console.page.locator("tbody tr")
        headers = {"authorization": f"Bearer {live.key}"}
        body = {"model": "max", "max_tokens": 400, "messages": [{"role": "user", "content": "Tell a long story."}]}

        def run() -> None:
            with httpx.Client(timeout=120) as client:
                client.post(f"{live.url}/v1/chat/completions", headers=headers, json=body).raise_for_status()

        running = threading.Thread(target=run)
        running.start()
        try:
            expect(rows.first).to_contain_text("running")
            expect(rows.first).to_contain_text("done", timeout=ANSWER_MS)
            expect(rows.first).to_contain_text("$0.0000")
        finally:
            running.join(120)
        rows.first.get_by_role("button").click()
        expect(console.page.get_by_role("dialog")).to_contain_text("/v1/chat/completions")

    def test_the_live_stream_comes_back_after_a_break(self, console: Console, api: httpx.Client) -> None:
        console.sign_in()
        breaks = []

        def broken_once(route: object) -> None:
            if breaks:
                route.continue_()  # type: ignore[attr-defined]
                return
            breaks.append(1)
            route.fulfill(status=200, content_type="text/event-stream", body=": ready\n\n")  # type: ignore[attr-defined]

        console.page.route("**/atoll/v1/requests/live", broken_once)
        console.go("requests")
        status = console.page.locator(".page-head [role=status]")
        expect(status).to_contain_text("reconnecting")
        expect(status).to_contain_text("live")
        done = say(api)
        expect(console.page.locator(f"tr[data-id='{done}']")).to_contain_text("done")


class TestModelsAndStatus:
    def test_models_are_listed_with_state_and_tier(self, console: Console) -> None:
        console.sign_in()
        console.go("models")
        card = console.page.locator(".card", has_text="smollm2-135m").first
        expect(card).to_contain_text("ready")
        expect(card).to_contain_text(re.compile("demonstration model", re.IGNORECASE))
        expect(console.page.get_by_label("Model behind max")).to_have_value("smollm2-135m")
        expect(console.page.locator(".card", has_text="hibari-heart").first).to_contain_text("voice: heart")
        expect(console.page.get_by_role("button", name=re.compile("^Remove "))).to_have_count(0)
        row = console.page.get_by_role("row", name=re.compile("qwen3", re.IGNORECASE)).first
        expect(row).to_contain_text(re.compile(r"\d+(\.\d)? [MG]B"))

    def test_a_model_that_cannot_be_added_says_why(self, console: Console) -> None:
        console.expected.append("40[04]")
        console.sign_in()
        console.go("models")
        console.page.get_by_role("button", name="Add model").click()
        console.page.get_by_label("Where it is").fill("/no/such/file.gguf")
        console.page.get_by_role("button", name="Add", exact=True).click()
        expect(console.page.get_by_role("dialog").get_by_role("alert")).to_contain_text("/no/such/file.gguf")

    def test_status_lists_every_model(self, console: Console, api: httpx.Client) -> None:
        console.sign_in()
        console.go("status")
        for model in api.get("/atoll/v1/status").json()["models"]:
            expect(console.page.get_by_role("heading", name=model["id"], exact=True)).to_be_visible()


class TestForEveryone:
    def test_by_keyboard_alone(self, console: Console) -> None:
        page, press = console.page, console.page.keyboard.press
        console.open()
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type(console.key)
        press("Enter")
        expect(page.get_by_role("textbox", name="Message")).to_be_visible()
        reach(console, "Skip to content")
        press("Enter")
        expect(page.locator("main")).to_be_focused()
        reach(console, "Message")
        page.keyboard.type("Say hi.")
        press("Enter")
        expect(page.locator(".facts")).to_contain_text("tokens/s", timeout=ANSWER_MS)
        reach(console, "Keys")
        press("Enter")
        expect(page.get_by_role("heading", name="Keys", level=1)).to_be_visible()
        reach(console, "Create key")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        for _ in range(25):
            press("Tab")
            assert page.evaluate("document.activeElement.closest('dialog') !== null"), "the dialog must keep the focus"
        press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.get_by_role("button", name="Create key")).to_be_focused()

    def test_a_narrow_phone_never_scrolls_sideways(self, browser: Browser, live: Live) -> None:
        with tab(browser, live.url, live.key, width=360, height=740) as console:
            console.open()
            assert console.too_wide() <= 0
            console.sign_in()
            console.limit_answers(30)
            console.ask("Name three fish.")
            expect(console.page.locator(".facts")).to_contain_text("tokens/s", timeout=ANSWER_MS)
            for name in PAGES:
                console.go(name)
                expect(console.page.locator(".skeleton")).to_have_count(0)
                assert console.too_wide() <= 0, name
            console.go("keys")
            console.page.get_by_role("button", name="Create key").click()
            assert console.too_wide() <= 0
            console.page.keyboard.press("Escape")
            console.page.get_by_role("button", name="Menu").click()
            console.page.get_by_role("navigation").get_by_role("link", name="Map").click()
            expect(console.page.get_by_role("heading", name="Map", level=1)).to_be_visible()
            expect(console.page.get_by_role("navigation")).to_be_hidden()

    def test_dark_follows_the_system_and_the_switch_wins(self, browser: Browser, live: Live) -> None:
        with tab(browser, live.url, live.key, theme="dark") as console:
            console.sign_in()
            assert brightness(console) < 60
            console.page.get_by_role("button", name="Switch to the light theme").click()
            assert brightness(console) > 200
            console.page.reload()
            expect(console.page.get_by_role("textbox", name="Message")).to_be_visible()
            assert brightness(console) > 200

    def test_less_motion_when_asked(self, console: Console) -> None:
        console.page.emulate_media(reduced_motion="reduce")
        console.sign_in()
        moves = "(e) => getComputedStyle(e).animationName !== 'none'"
        assert not console.page.evaluate(f"[...document.querySelectorAll('*')].some({moves})")


class TestFiles:
    def test_third_party_files_are_the_ones_named(self) -> None:
        table = (FILES / "vendor" / "README.md").read_text()
        named = dict(re.findall(r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", table, re.MULTILINE))
        there = {p.name: p for p in (FILES / "vendor").iterdir() if p.suffix in {".js", ".css", ".json"}}
        assert named == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in there.items()}
        for licence in set(re.findall(r"LICENSE\.[a-z-]+", table)):
            assert (FILES / "vendor" / licence).stat().st_size > 500

    def test_nothing_inline_that_the_policy_forbids(self, live: Live) -> None:
        page = (FILES / "index.html").read_text()
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page)
        policy = httpx.get(live.url).headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy


@pytest.mark.parametrize(
    ("look", "width", "height", "theme"),
    [("wide", 1440, 900, "light"), ("phone", 390, 844, "light"), ("dark", 1440, 900, "dark")],
)
def test_screenshots(
    browser: Browser, live: Live, api: httpx.Client, tmp_path: Path, look: str, width: int, height: int, theme: str
) -> None:
    """The pages at their best; into docs/images when ATOLL_SCREENSHOTS is set."""
    folder = IMAGES if os.environ.get("ATOLL_SCREENSHOTS") else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    furnish(api)
    with tab(browser, live.url, live.key, width=width, height=height, theme=theme) as console:
        console.sign_in()
        console.limit_answers(160)
        console.ask("Explain in three sentences why the sea is salty.")
        expect(console.page.locator(".facts")).to_contain_text("tokens/s", timeout=ANSWER_MS)
        for name in PAGES[:5]:
            console.go(name)
            expect(console.page.locator(".skeleton")).to_have_count(0)
            console.page.wait_for_timeout(400)
            path = folder / f"console-{name}-{look}.png"
            console.page.screenshot(path=path)
            assert 5_000 < path.stat().st_size < 300_000


