"""A region on another machine becomes part of a cloud: invited by the gateway's operator, certified, remembered.

A token is `atoll-<region>-<seed>-<CA fingerprint>`. The region signs what it asks with the key made of the seed, of
which the gateway keeps the public half only; it checks the answer against the fingerprint. So nothing that passes on
the way lets a third party in, also where the way is plain HTTP.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from atoll.core.errors import AtollError, Forbidden, InvalidRequest, SetupError, Unauthenticated
from atoll.core.places import Machine
from atoll.core.ports import Places
from atoll.regions.link import Address
from atoll.regions.trust import (
    Authority,
    Trust,
    check_answer,
    fingerprint_of,
    key_pem,
    new_key,
    open_authority,
    request_certificate,
    write,
)

HOUR = 3600.0
DAY = 24 * HOUR
CALL_S = 30.0
Admit = Callable[[Address], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Token:
    """`seed`: 32 bytes; `ca`: SHA-256 of the CA's certificate in hex."""

    region: str
    seed: bytes
    ca: str

    def __str__(self) -> str:
        return f"atoll-{self.region}-{self.seed.hex()}-{self.ca}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises InvalidRequest."""
        first, _, ca = text.strip().rpartition("-")
        named, _, seed = first.rpartition("-")
        region = named.removeprefix("atoll-")
        try:
            raw = bytes.fromhex(seed)
        except ValueError:
            raw = b""
        if not named.startswith("atoll-") or not region or len(raw) != 32 or len(ca) != 64:
            raise InvalidRequest("it is no token of 'atoll region invite'", param="token")
        return cls(region, raw, ca)


@dataclass(frozen=True, slots=True)
class Asking:
    """What a region asks. `invite` is the public key of the token, `url` where the station will listen."""

    region: str
    csr: str
    url: str
    invite: str
    signature: str = ""

    def message(self) -> bytes:
        return "\n".join(("atoll join", self.region, self.url, self.invite, self.csr)).encode()


@dataclass(frozen=True, slots=True)
class Door:
    """Where a region listens, and whom it lets in: who has the token, or is trusted."""

    region: str
    host: str
    port: int
    token: str = ""
    trust: Trust | None = None


class Joined:
    """The gateway's side. Invitations, and the keys that vouch for regions, are kept in a folder; which regions joined,
    and what their gateways' authorities are, is known to every gateway on the database."""

    def __init__(self, place: Path, known: Places, now: Callable[[], float] = time.time) -> None:
        self._place = place
        self._known = known
        self._now = now
        self._authority: Authority | None = None
        self._addresses: dict[tuple[str, Machine], Address] = {}
        self.admit: Admit | None = None

    async def addresses(self) -> dict[str, Address]:
        """The regions that joined, by id; the same object for as long as its machine stays the same."""
        joined = (await self._known.joined()).items()
        self._addresses = {told: self._addresses.get(told) or self._address(*told) for told in joined}
        return {id: address for (id, _), address in self._addresses.items()}

    def _address(self, region: str, machine: Machine) -> Address:
        return Address(region, machine.url, "", self._ca().context(region, machine.authority))

    async def authorities(self) -> dict[str, str]:
        """Those (PEM) of the gateways that ask regions which joined, by fingerprint; this gateway's is made known."""
        introduced, mine, now = await self._known.introduced(), self._ca(), self._now()
        if now - introduced.get(mine.pem, 0.0) > DAY:
            await self._known.introduce(mine.pem, now)
        return {mine.fingerprint: mine.pem, **{fingerprint_of(pem): pem for pem in introduced}}

    async def part(self, region: str) -> None:
        """Forget the machine that joined as `region`."""
        await self._known.part(region)

    async def invite(self, region: str) -> dict[str, Any]:
        """A new invitation: its token is told once."""
        token, now = Token(region, secrets.token_bytes(32), self._ca().fingerprint), self._now()
        kept = {key: row for key, row in self._read("invites.json").items() if now < row["expires_at"] + HOUR}
        row = {"region": region, "expires_at": now + HOUR, "used": False}
        self._write("invites.json", {**kept, _public(token.seed): row})
        return {"region": region, "token": str(token), "expires_at": row["expires_at"], "ca_fingerprint": token.ca}

    async def join(self, region: str, told: Mapping[str, str]) -> dict[str, Any]:
        """Certify a region and take it into the fleet. Raises Unauthenticated, Forbidden or InvalidRequest."""
        asking = Asking(region, told["csr"], told["url"], told["invite"], told["signature"])
        invites = self._check(asking)
        certificate = self._ca().sign_region(asking.csr, region)
        invites[asking.invite]["used"] = True
        self._write("invites.json", invites)
        await self._known.join(region, Machine(asking.url, self._ca().pem))
        if self.admit is not None:
            await self.admit((await self.addresses())[region])
        return {"region": region, "certificate": certificate, "ca": self._ca().pem}

    def _check(self, asking: Asking) -> dict[str, Any]:
        invites = self._read("invites.json")
        row = invites.get(asking.invite)
        again = "make a new one with 'atoll region invite'"
        if row is None:
            raise Unauthenticated(f"the invitation is unknown; {again}", code="invalid_invitation")
        try:
            Ed25519PublicKey.from_public_bytes(_raw(asking.invite)).verify(_raw(asking.signature), asking.message())
        except (InvalidSignature, ValueError, NotBase64):
            raise Unauthenticated("the request is not signed with the token", code="invalid_invitation") from None
        if row["region"] != asking.region:
            raise Forbidden(f"the invitation is for region '{row['region']}', not '{asking.region}'", param="region")
        if row["used"]:
            raise Unauthenticated(f"the invitation was used already; {again}", code="invalid_invitation")
        if self._now() >= row["expires_at"]:
            raise Unauthenticated(f"the invitation has expired; {again}", code="invalid_invitation")
        where = urlsplit(asking.url)
        if where.scheme != "https" or not where.hostname or where.path or where.query:
            raise InvalidRequest("it must be https://HOST:PORT, where the gateway reaches the region", param="url")
        return invites

    def _ca(self) -> Authority:
        if self._authority is None:
            self._authority = open_authority(self._place)
        return self._authority

    def _read(self, name: str) -> dict[str, Any]:
        return _load(self._place / name)

    def _write(self, name: str, value: Any) -> None:
        _keep(self._place / name, value)


def enroll(place: Path, gateway: str, token: Token, listen: tuple[str, int]) -> Door:
    """The region's side: ask `gateway` for a certificate and keep all in `place`. Raises AtollError."""
    host, port = listen
    if not port:
        port = _free_port(host)
    key = new_key()
    seen = _seen_by(gateway) if host in {"0.0.0.0", "::"} else host
    url = f"https://[{seen}]:{port}" if ":" in seen else f"https://{seen}:{port}"
    asking = Asking(token.region, request_certificate(key, token.region), url, _public(token.seed))
    signature = _text(Ed25519PrivateKey.from_private_bytes(token.seed).sign(asking.message()))
    told = {**asdict(asking), "signature": signature}
    answer = _post(gateway, token.region, {name: told[name] for name in ("csr", "url", "invite", "signature")})
    check_answer(answer["certificate"], answer["ca"], key, token.ca, token.region)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(place / "region.key", key_pem(key))
    write(place / "region.pem", answer["certificate"])
    write(place / "ca.pem", answer["ca"])
    (place / "gateways.pem").unlink(missing_ok=True)
    _keep(place / "region.json", {"region": token.region, "host": host, "port": port})
    return open_door(place)


def open_door(place: Path) -> Door:
    """What `enroll` kept. Raises SetupError."""
    kept = _load(place / "region.json")
    if not kept:
        raise SetupError(f"no region has joined a cloud from {place.parent}; see 'atoll region join --help'")
    return Door(kept["region"], kept["host"], kept["port"], trust=Trust(place))


def _post(gateway: str, region: str, body: dict[str, Any]) -> dict[str, str]:
    url = f"{gateway.rstrip('/').removesuffix('/v1')}/atoll/v1/regions/{region}/join"
    try:
        reply = httpx.post(url, json=body, timeout=CALL_S)
        told = reply.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SetupError(f"no gateway answers at {gateway}: {error}") from None
    except ValueError:
        raise SetupError(f"what answers at {gateway} is not Atoll") from None
    if reply.status_code != 200:
        message = told.get("error", {}).get("message") if isinstance(told, dict) else None
        error = AtollError(message or f"the gateway answered {reply.status_code}")
        error.status = reply.status_code
        raise error
    if not isinstance(told, dict) or not all(isinstance(told.get(n), str) for n in ("certificate", "ca")):
        raise SetupError(f"what answers at {gateway} is not Atoll")
    return told


def _seen_by(gateway: str) -> str:
    """This machine's address on the way to the gateway."""
    where = urlsplit(gateway)
    try:
        found = socket.getaddrinfo(where.hostname, where.port or 443, type=socket.SOCK_DGRAM)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[0][4])
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SetupError(f"there is no way to {gateway}: {error}") from None


def _free_port(host: str) -> int:
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise SetupError(f"cannot listen on {host}: {error.strerror}; see --listen") from None


def _public(seed: bytes) -> str:
    return _text(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _load(place: Path) -> dict[str, Any]:
    try:
        return json.loads(place.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SetupError(f"{place} cannot be read: {error}; restore it") from None


def _keep(place: Path, value: Any) -> None:
    write(place, json.dumps(value, indent=1))
