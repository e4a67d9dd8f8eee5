"""Signed receipts: which regions processed a request, where its row is kept, under which rule, and what it cost.

A receipt is made from the ledger row alone, so it can be asked for again at any time and is the same each time. It
holds strings and whole numbers only, so that every language writes the same canonical JSON: keys sorted, no white
space, UTF-8. `signature` is Ed25519 over the canonical JSON of all other fields, in base64url without padding.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from atoll.core.errors import InvalidRequest, SetupError
from atoll.core.types import BY_TEXT, Entry

FILE = "receipts.key"


@dataclass(frozen=True, slots=True)
class Signer:
    """The key pair of this installation. `key_id` is the fingerprint of the public key."""

    private: Ed25519PrivateKey
    public: bytes
    key_id: str

    def sign(self, entry: Entry, weights: str = "") -> dict[str, Any]:
        """The receipt of a request that has ended. `weights`: the digest of the weights, empty where not known."""
        told = {**receipt(entry, weights), "key_id": self.key_id}
        return {**told, "signature": _text(self.private.sign(canonical(told)))}

    def public_key(self) -> dict[str, str]:
        return {"key_id": self.key_id, "algorithm": "Ed25519", "public_key": _text(self.public)}


def open_signer(data: Path) -> Signer:
    """The key pair kept in the folder `data`, made at the first start. Raises SetupError."""
    place = data / FILE
    try:
        with suppress(FileExistsError):
            _create(place)
        if place.stat().st_mode & 0o077:
            raise SetupError(f"{place} signs receipts and can be read by others; chmod 600 {place}")
        private = load_pem_private_key(place.read_bytes(), None)
    except OSError as error:
        raise SetupError(f"the key that signs receipts, {place}, cannot be used: {error.strerror}") from error
    except ValueError:
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise SetupError(f"{place} is no Ed25519 private key; restore it, or move it away and a new one is made")
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return Signer(private, public, fingerprint(public))


def _create(place: Path) -> None:
    """All of the file at once, or none: a start that is cut off leaves no half of a key."""
    draft = place.with_name(f"{place.name}.{os.getpid()}")
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if place.exists():
        return
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, place)
    finally:
        draft.unlink(missing_ok=True)


def fingerprint(public: bytes) -> str:
    return sha256(public).hexdigest()[:32]


def canonical(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def receipt(entry: Entry, weights: str) -> dict[str, Any]:
    """The fields of a receipt before it is signed. Times in whole milliseconds, money in nanodollars."""
    steps = [step.rpartition(":") for step in entry.path.split()]
    return {
        "version": 1,
        "request_id": entry.id,
        "model": entry.model,
        "weights": weights or None,
        "route": entry.route,
        "status": entry.status,
        "http_status": entry.http_status,
        "processed": [{"region": region, "tokens": int(tokens)} for region, _, tokens in steps],
        "stored_in": entry.stored_in,
        "rule": entry.rule,
        "recovery": {"grade": entry.grade or None, "verified": verified(entry)},
        "created_at_ms": round(entry.created_at * 1000),
        "first_token_ms": _whole(entry.first_token_ms),
        "duration_ms": _whole(entry.duration_ms),
        "usage": {"input": entry.usage.input, "output": entry.usage.output, "cached": entry.usage.cached},
        "cost_nanodollars": entry.cost,
    }


def verified(entry: Entry) -> bool | None:
    """Whether the parts of a recovered answer were checked against what was sent, token by token, or letter by letter
    where the way ends in `-text`: False where a check was tried and the answer went on unchecked; None where there was
    nothing to check, no check was asked for, or the answer broke off, maybe before its check was over."""
    ways = [way.removesuffix(BY_TEXT) for way in entry.grade.split(">")]
    if ways[0] not in ("exact", "hot") or entry.status != "done":
        return None
    return "fast" not in ways


def verify(told: Mapping[str, Any], public: bytes) -> None:
    """Raises InvalidRequest when the holder of the public key (32 bytes) did not sign exactly this receipt."""
    rest = {name: value for name, value in told.items() if name != "signature"}
    if rest.get("key_id") != fingerprint(public):
        raise InvalidRequest("the receipt was signed with another key", param="key_id")
    try:
        given = str(told.get("signature", ""))
        signature = urlsafe_b64decode(given + "=" * (-len(given) % 4))
        if _text(signature) != given:
            raise InvalidSignature
        Ed25519PublicKey.from_public_bytes(public).verify(signature, canonical(rest))
    except (InvalidSignature, NotBase64, ValueError, TypeError):
        raise InvalidRequest("the receipt is not what was signed", param="signature") from None


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
