"""The code of the README and the guides runs as it stands, against the real cloud.

Blocks marked `python` run in order, one namespace a page; blocks marked `bash` run in order in one shell. Blocks marked
`console` or `text` are for reading: they install, or need a network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")

pytestmark = pytest.mark.xdist_group("live")


@pytest.fixture(autouse=True)
def arm(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The policy that the guide of policies drives."""
    page = request.node.callspec.params["page"]
    if page.name == "policies.md" and "live" in request.fixturenames:
        from reaching import reaching
        from served import gated

        (tmp_path / "arm").mkdir()
        body = dict(zip(("policy", "report"), gated(tmp_path / "arm", reaching()), strict=True))
        live = request.getfixturevalue("live")
        url, key = f"{live.url}/atoll/v1/policies/arm/promote", {"authorization": f"Bearer {live.key}"}
        assert httpx.post(url, json=body, headers=key).status_code in (200, 409)


def blocks(page: Path, language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python(page: Path, live, tmp_path: Path) -> None:
    run([sys.executable, "-W", "error", "-c", blocks(page, "python")], live, tmp_path)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "bash")], ids=lambda p: p.name)
def test_bash(page: Path, live, tmp_path: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", blocks(page, "bash")], live, tmp_path)


def run(argv: list[str], live, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = {"ATOLL_URL": live.url, "ATOLL_API_KEY": live.key, "ATOLL_DATA": str(live.data), "PATH": path}
    done = subprocess.run(
        argv, cwd=folder, env={**os.environ, **told}, capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stdout + done.stderr
