"""A region elsewhere is let in with a token, once; after that nobody without the right certificate is."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atoll.core.errors import AtollError, EngineFailed, Forbidden, InvalidRequest, SetupError, Unauthenticated
from atoll.core.types import Endpoint
from atoll.regions.join import Asking, Joined, Token, _public, _text
from atoll.regions.site import Site
from atoll.regions.station import Station
from atoll.regions.trust import Trust, check_answer, key_pem, new_key, open_authority, request_certificate
from atoll.regions.upstream import Pool
from atoll.store.memory import MemoryPlaces

URL = "https://127.0.0.1:7701"


def asked(token: Token, csr: str, region: str = "") -> dict[str, str]:
    asking = Asking(region or token.region, csr, URL, _public(token.seed))
    signature = _text(Ed25519PrivateKey.from_private_bytes(token.seed).sign(asking.message()))
    told = asdict(replace(asking, signature=signature))
    del told["region"]
    return told


async def invited(door: Joined, region: str = "x-fr-1") -> Token:
    return Token.parse((await door.invite(region))["token"])


async def refused(door: Joined, told: dict[str, str], region: str = "x-fr-1") -> AtollError:
    with pytest.raises(AtollError) as caught:
        await door.join(region, told)
    return caught.value


async def test_a_token_lets_one_region_in_once(tmp_path: Path) -> None:
    places, admitted = MemoryPlaces(), []
    door = Joined(tmp_path, places)

    async def admit(address: Any) -> None:
        admitted.append(address)

    door.admit = admit
    token, key = await invited(door), new_key()
    told = asked(token, request_certificate(key, "x-fr-1"))
    answer = await door.join("x-fr-1", told)
    check_answer(answer["certificate"], answer["ca"], key, token.ca, "x-fr-1")
    assert [(a.region, a.url, a.token) for a in admitted] == [("x-fr-1", URL, "")]
    again = await refused(door, told)
    assert isinstance(again, Unauthenticated) and "used already" in again.message
    assert (await Joined(tmp_path, places).addresses())["x-fr-1"].url == URL
    assert token.seed.hex() not in (tmp_path / "invites.json").read_text()
    assert not [name for name in os.listdir(tmp_path) if (tmp_path / name).stat().st_mode & 0o077]


async def test_bad_invitations_are_refused(tmp_path: Path) -> None:
    clock = [0.0]
    door = Joined(tmp_path, MemoryPlaces(), lambda: clock[0])
    token, csr = await invited(door), request_certificate(new_key(), "x-fr-1")
    unknown = Token("x-fr-1", bytes(32), token.ca)
    assert "unknown" in (await refused(door, asked(unknown, csr))).message
    forged = asked(token, csr) | {"url": "https://evil:1"}
    assert "not signed with the token" in (await refused(door, forged)).message
    other = await refused(door, asked(token, csr, "x-nl-1"), "x-nl-1")
    assert isinstance(other, Forbidden) and "for region 'x-fr-1'" in other.message
    named = await refused(door, asked(token, request_certificate(new_key(), "x-nl-1")))
    assert isinstance(named, Forbidden) and "signing request names" in named.message
    assert isinstance(await refused(door, asked(token, "no csr")), InvalidRequest)
    clock[0] = 3600.0
    assert "expired" in (await refused(door, asked(token, csr))).message


async def test_an_answer_of_somebody_in_the_middle_is_refused(tmp_path: Path) -> None:
    token, key = await invited(Joined(tmp_path / "mine", MemoryPlaces())), new_key()
    csr = request_certificate(key, "x-fr-1")
    evil = open_authority(tmp_path / "evil")
    made = evil.sign_region(csr, "x-fr-1")
    with pytest.raises(Forbidden, match="not the gateway that made the token"):
        check_answer(made, evil.pem, key, token.ca, "x-fr-1")
    mine = open_authority(tmp_path / "mine")
    with pytest.raises(Forbidden, match="no certificate that its authority signed"):
        check_answer(made, mine.pem, key, token.ca, "x-fr-1")
    with pytest.raises(Forbidden, match="another key or region"):
        check_answer(mine.sign_region(csr, "x-fr-1"), mine.pem, new_key(), token.ca, "x-fr-1")


@pytest.mark.parametrize("text", ["", "atoll-x-fr-1", "sk-atoll-abc", "atoll-x-" + "0" * 64 + "-" + "0" * 63])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no token"):
        Token.parse(text)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    open_authority(tmp_path)
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(SetupError, match="chmod 600"):
        open_authority(tmp_path)


def certified(place: Path, ca: Any, region: str) -> Trust:
    """What a region of `ca` listens with."""
    place.mkdir()
    key = new_key()
    (place / "region.key").write_text(key_pem(key))
    (place / "region.pem").write_text(ca.sign_region(request_certificate(key, region), region))
    (place / "ca.pem").write_text(ca.pem)
    return Trust(place)


async def status(station: Station, tls: ssl.SSLContext) -> int:
    pool = Pool(Endpoint("probe", station.url, "x-fr-1"), tls=tls)
    try:
        connection = await pool.request("/load", b"{}")
        while await connection.read():
            pass
        return connection.status
    finally:
        await pool.close()


async def test_both_sides_of_a_connection_prove_who_they_are(tmp_path: Path) -> None:
    ca, other = open_authority(tmp_path / "ca"), open_authority(tmp_path / "other")
    station = Station("x-fr-1", Site(), 4, trust=certified(tmp_path / "fr", ca, "x-fr-1"))
    await station.listen()
    nobody = ssl.create_default_context(cafile=str(tmp_path / "ca/ca.pem"))
    nobody.check_hostname = False
    stolen = ssl.create_default_context(cafile=str(tmp_path / "ca/ca.pem"))
    stolen.check_hostname = False
    stolen.load_cert_chain(tmp_path / "fr/region.pem", tmp_path / "fr/region.key")
    try:
        assert await status(station, ca.context("x-fr-1")) == 200
        for wrong in (ca.context("x-nl-1"), other.context("x-fr-1"), nobody, stolen):
            with pytest.raises(EngineFailed):
                async with asyncio.timeout(5):
                    await status(station, wrong)
    finally:
        await station.close()


async def test_a_gateway_that_another_one_introduced_is_let_in(tmp_path: Path) -> None:
    """Also after a restart of the region, until it is no longer among those told of."""
    one, two = open_authority(tmp_path / "one"), open_authority(tmp_path / "two")
    trust = certified(tmp_path / "fr", one, "x-fr-1")
    theirs = two.context("x-fr-1", one.pem)
    for step in ("nobody told", "told", "restarted", "gone"):
        station = Station("x-fr-1", Site(), 4, trust=trust)
        await station.listen()
        try:
            if step == "told":
                await told(station, one.context("x-fr-1"), one.pem, two.pem)
                assert station.load()["trusts"] == sorted((one.fingerprint, two.fingerprint))
            if step == "restarted":
                assert await status(station, theirs) == 200
                await told(station, theirs, one.pem)
            elif step == "told":
                assert await status(station, theirs) == 200
            else:
                with pytest.raises(EngineFailed):
                    await status(station, theirs)
            assert await status(station, one.context("x-fr-1")) == 200
        finally:
            await station.close()
        trust = Trust(tmp_path / "fr")


async def test_authorities_that_are_none_are_refused(tmp_path: Path) -> None:
    ca = open_authority(tmp_path / "ca")
    trust = certified(tmp_path / "fr", ca, "x-fr-1")
    with pytest.raises(InvalidRequest, match="certificates in PEM"):
        trust.tell(["no certificate"])
    with pytest.raises(InvalidRequest, match="at most 256"):
        trust.tell([ca.pem] * 257)
    assert Trust(tmp_path / "fr").told == frozenset()
    for name in ("gateways.pem", "ca.pem"):
        (tmp_path / "fr" / name).write_text("no certificate")
        with pytest.raises(SetupError, match="join"):
            Trust(tmp_path / "fr")


async def told(station: Station, tls: ssl.SSLContext, *authorities: str) -> None:
    pool = Pool(Endpoint("gateway", station.url, "x-fr-1"), tls=tls)
    connection = await pool.request("/gateways", json.dumps({"authorities": authorities}).encode())
    assert connection.status == 200
    await pool.close()
