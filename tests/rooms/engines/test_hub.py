"""Looking at, choosing from and fetching from a hub, over HTTP, with everything that goes wrong on the way."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, serving

from atoll.core.errors import Forbidden, InvalidRequest, SetupError
from atoll.engines import download
from atoll.engines.hub import Hub, Patience
from atoll.engines.hubfiles import HubFile, Repo, choose

REPO = "owner/tiny-GGUF"
FILE = "tiny-Q4_K_M.gguf"
DATA = os.urandom(300_000)
QUICK = Patience(connect=2, stall=0.5, attempts=3, first_delay=0.01, most_delay=2)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serving(HubServer(files={FILE: DATA})) as server:
        yield server


def client(hub: HubServer, cache: Path, token: str = "") -> Hub:
    return Hub(hub.url, cache, token, QUICK)


async def get(hub: HubServer, cache: Path, token: str = "", seen: list | None = None) -> Path:
    ours = client(hub, cache, token)
    repo = await ours.look(REPO)
    return await download.fetch(ours, repo, choose(repo), lambda *step: (seen if seen is not None else []).append(step))


def part(cache: Path, digest: str | None = None) -> Path:
    return cache / "hub" / "owner" / "tiny-GGUF" / (digest or hashlib.sha256(DATA).hexdigest()) / f"{FILE}.part"


async def test_look_tells_commit_licence_and_files(hub: HubServer, tmp_path: Path) -> None:
    repo = await client(hub, tmp_path).look(REPO)
    assert (repo.name, repo.commit, repo.licence) == (REPO, COMMIT, "apache-2.0")
    assert repo.files == (HubFile(FILE, len(DATA), hashlib.sha256(DATA).hexdigest()),)


async def test_look_at_a_revision_follows_pages_on_this_host_only(hub: HubServer, tmp_path: Path) -> None:
    hub.files = {f"tiny-{i}.gguf": b"x" * (i + 1) for i in range(5)}
    hub.page_size = 2
    repo = await client(hub, tmp_path).look(REPO, "v1")
    assert [f.size for f in repo.files] == [1, 2, 3, 4, 5]
    real, hub.url = hub.url, "http://127.0.0.1:9"
    with pytest.raises(SetupError, match="next page on another host"):
        await Hub(real, tmp_path, "", QUICK).look(REPO)


async def test_unsafe_names_and_files_without_digest_are_left_out(hub: HubServer, tmp_path: Path) -> None:
    hub.files = {name: b"x" for name in ("../up.gguf", "/abs.gguf", "a/../b.gguf", ".hidden.gguf", "a\\b.gguf")}
    hub.files |= {"readme.md": b"x", "odd.gguf": b"x", "sub/fine.gguf": b"x"}
    hub.digests = {"odd.gguf": "sha1-abc"}
    repo = await client(hub, tmp_path).look(REPO)
    assert [f.path for f in repo.files] == ["sub/fine.gguf"]


@pytest.mark.parametrize("name", ["", "one", "a/b/c", "../x", "a/..", "a/b?x=1", "a /b", "a/b\n", "/a/b", "a/b..c"])
async def test_repository_names_never_become_other_paths(hub: HubServer, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="owner/name") as caught:
        await client(hub, tmp_path).look(name)
    assert caught.value.param == "source"
    assert not hub.asked


@pytest.mark.parametrize("revision", ["", "../x", "a b", "-x", "a\nb", "x" * 300])
async def test_revisions_are_checked(hub: HubServer, tmp_path: Path, revision: str) -> None:
    with pytest.raises(InvalidRequest, match="revision"):
        await client(hub, tmp_path).look(REPO, revision)


async def test_fetch_stores_under_the_digest_and_reports(hub: HubServer, tmp_path: Path) -> None:
    seen: list = []
    path = await get(hub, tmp_path, seen=seen)
    assert path == part(tmp_path).with_suffix("") and path.read_bytes() == DATA
    assert seen[-1] == (REPO, len(DATA), len(DATA)) and all(a[1] <= b[1] for a, b in pairwise(seen))
    assert not part(tmp_path).exists()
    asked = len(hub.downloads())
    assert await get(hub, tmp_path) == path and len(hub.downloads()) == asked


async def test_a_cut_in_the_middle_is_continued(hub: HubServer, tmp_path: Path) -> None:
    hub.cut = [100_000]
    assert (await get(hub, tmp_path)).read_bytes() == DATA
    first, second = hub.downloads()
    assert "range" not in first.headers and second.headers["range"] == "bytes=100000-"


async def test_a_part_left_by_another_process_is_continued(hub: HubServer, tmp_path: Path) -> None:
    hub.cut = [70_000, 0, 0, 0]
    with pytest.raises(SetupError, match=r"ended early|broke|incomplete|closed"):
        await get(hub, tmp_path)
    assert part(tmp_path).stat().st_size == 70_000
    hub.cut, hub.asked = [], []
    assert (await get(hub, tmp_path)).read_bytes() == DATA
    assert hub.downloads()[0].headers["range"] == "bytes=70000-"


async def test_a_server_without_ranges_starts_anew(hub: HubServer, tmp_path: Path) -> None:
    hub.cut, hub.ranges = [100_000], False
    assert (await get(hub, tmp_path)).read_bytes() == DATA


async def test_a_part_that_is_too_long_is_thrown_away(hub: HubServer, tmp_path: Path) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(DATA + b"more")
    assert (await get(hub, tmp_path)).read_bytes() == DATA


async def test_a_wrong_digest_is_not_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.digests = {FILE: "0" * 64}
    with pytest.raises(SetupError, match=r"has sha256 .* but the hub names 0000"):
        await get(hub, tmp_path)
    assert os.listdir(part(tmp_path, "0" * 64).parent) == []


async def test_a_damaged_part_is_noticed_and_the_next_try_is_clean(hub: HubServer, tmp_path: Path) -> None:
    part(tmp_path).parent.mkdir(parents=True)
    part(tmp_path).write_bytes(b"x" * 1000)
    with pytest.raises(SetupError, match="Nothing was kept"):
        await get(hub, tmp_path)
    assert (await get(hub, tmp_path)).read_bytes() == DATA


async def test_gated_repositories_ask_for_a_token(hub: HubServer, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    with pytest.raises(Forbidden, match="set HF_TOKEN"):
        await get(hub, tmp_path)
    with pytest.raises(Forbidden, match="token in HF_TOKEN may not read it") as caught:
        await get(hub, tmp_path, "hf_wrong")
    assert "hf_wrong" not in str(caught.value)
    assert (await get(hub, tmp_path, "hf_secret")).read_bytes() == DATA


async def test_what_does_not_exist_is_named(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no 'owner/other'"):
        await client(hub, tmp_path).look("owner/other")


async def test_retry_after_is_honoured(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refuse, hub.refuse_headers = [429, 503], {"Retry-After": "1"}
    waits: list[float] = []
    monkeypatch.setattr("atoll.engines.hub.asyncio.sleep", _recorder(waits))
    await client(hub, tmp_path).look(REPO)
    assert waits == [1.0, 1.0]
    hub.refuse, hub.refuse_headers = [429], {"Retry-After": "86400"}
    await client(hub, tmp_path).look(REPO)
    assert waits[-1] == QUICK.most_delay


def _recorder(waits: list[float]):
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return sleep


async def test_it_gives_up_when_nothing_moves(hub: HubServer, tmp_path: Path) -> None:
    hub.refuse = [500] * 10
    with pytest.raises(SetupError, match=r"HTTP 500.*add /path/to/model.gguf"):
        await client(hub, tmp_path).look(REPO)
    assert len(hub.asked) == QUICK.attempts


async def test_a_stall_is_interrupted_and_continued(hub: HubServer, tmp_path: Path) -> None:
    hub.cut, hub.stall = [100_000], threading.Event()
    assert (await get(hub, tmp_path)).read_bytes() == DATA
    assert hub.downloads()[1].headers["range"] == "bytes=100000-"


async def test_a_redirect_to_another_host_does_not_carry_the_token(hub: HubServer, tmp_path: Path) -> None:
    with serving(HubServer(files={FILE: DATA})) as store:
        hub.token, hub.store = "hf_secret", store.url
        assert (await get(hub, tmp_path, "hf_secret")).read_bytes() == DATA
    assert hub.downloads()[0].headers["authorization"] == "Bearer hf_secret"
    assert [a.headers.get("authorization") for a in store.asked] == [None]


async def test_a_file_replaced_meanwhile_is_noticed_by_its_tag(hub: HubServer, tmp_path: Path) -> None:
    hub.tag = "f" * 64
    with pytest.raises(SetupError, match="changed on"):
        await get(hub, tmp_path)


async def test_no_room_is_said_before_the_download(hub: HubServer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(SetupError, match=r"not enough room in .* 67 MB, 0 MB are free"):
        await get(hub, tmp_path)
    assert not hub.downloads()


async def test_a_disk_that_fills_up_keeps_what_is_there(hub: HubServer, tmp_path: Path) -> None:
    """A file size limit of the process stands in for the full disk: the write fails in the kernel."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(SetupError, match="goes on where it stopped"):
            await get(hub, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 0 < part(tmp_path).stat().st_size <= 100_000
    assert (await get(hub, tmp_path)).read_bytes() == DATA


async def test_no_network_says_so_and_offers_a_file(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot be used.*/path/to/model.gguf.*ATOLL_HUB_URL"):
        await Hub("http://127.0.0.1:9", tmp_path, "", QUICK).look(REPO)


async def test_something_else_at_the_address_is_no_hub(hub: HubServer, tmp_path: Path) -> None:
    hub.refuse, hub.refuse_body = [200], b"<html>Welcome</html>"
    with pytest.raises(SetupError, match="is not a model hub"):
        await client(hub, tmp_path).look(REPO)


async def test_redirects_in_circles_end(hub: HubServer, tmp_path: Path) -> None:
    hub.store = hub.url
    with pytest.raises(SetupError, match="in circles"):
        await get(hub, tmp_path)


async def test_two_processes_do_not_write_one_file(hub: HubServer, tmp_path: Path) -> None:
    import fcntl

    part(tmp_path).parent.mkdir(parents=True)
    with part(tmp_path).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match="another process"):
            await get(hub, tmp_path)
    assert (await get(hub, tmp_path)).read_bytes() == DATA


async def test_a_model_in_parts_is_fetched_whole(hub: HubServer, tmp_path: Path) -> None:
    pieces = [os.urandom(50_000 + i) for i in range(3)]
    hub.files = {f"Q8_0/big-Q8_0-{i + 1:05d}-of-00003.gguf": piece for i, piece in enumerate(pieces)}
    path = await get(hub, tmp_path)
    assert path.name == "big-Q8_0-00001-of-00003.gguf"
    assert [p.read_bytes() for p in sorted(path.parent.glob("*.gguf"))] == pieces


def repo_of(*paths: str) -> Repo:
    return Repo(REPO, COMMIT, "", tuple(HubFile(path, 10, "0" * 64) for path in paths))


@pytest.mark.parametrize(
    ("paths", "wanted", "chosen"),
    [
        (("only.gguf",), "", ["only.gguf"]),
        (("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf"), "", ["m-Q4_K_M.gguf"]),
        (("m-Q8_0.gguf", "m-F16.gguf", "mmproj-F16.gguf"), "", ["m-Q8_0.gguf"]),
        (("m.q4_k_m.gguf", "m.q8_0.gguf"), "", ["m.q4_k_m.gguf"]),
        (("m-Q8_0.gguf", "m-Q4_K_M.gguf"), "Q8_0", ["m-Q8_0.gguf"]),
        (("m-Q8_0.gguf", "m-Q4_K_M.gguf"), "q8_0", ["m-Q8_0.gguf"]),
        (("sub/m-Q8_0.gguf", "m-Q4_K_M.gguf"), "m-Q8_0.gguf", ["sub/m-Q8_0.gguf"]),
        (("a/m.gguf", "b/m.gguf"), "b/m.gguf", ["b/m.gguf"]),
        (
            ("m-Q8_0-00002-of-00002.gguf", "m-Q8_0-00001-of-00002.gguf", "m-F16.gguf"),
            "Q8_0",
            ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"],
        ),
        (("m-Q4_K_M-00001-of-00002.gguf", "m-Q8_0.gguf"), "", ["m-Q8_0.gguf"]),
    ],
)
def test_choosing(paths: tuple[str, ...], wanted: str, chosen: list[str]) -> None:
    assert [f.path for f in choose(repo_of(*paths), wanted)] == chosen


@pytest.mark.parametrize(
    ("paths", "wanted", "said"),
    [
        (("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"), "", "2 files could be meant.*a-Q4_K_M.gguf.*b-Q4_K_M.gguf"),
        (("a.gguf", "b.gguf"), "", "2 files could be meant"),
        (("a.gguf",), "c.gguf", "'c.gguf' fits 0.*a.gguf"),
        ((), "", "no GGUF file"),
        (("m-IQ2_Q8_0.gguf", "m-Q8_0.gguf"), "Q8_0", "fits 2"),
        (("a.gguf",), ".*", "fits 0"),
    ],
)
def test_what_is_ambiguous_is_listed(paths: tuple[str, ...], wanted: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        choose(repo_of(*paths), wanted)
    assert caught.value.param == "source"


def test_a_token_is_never_shown() -> None:
    assert "hf_secret" not in repr(Hub("https://huggingface.co", Path("/x"), "hf_secret"))
