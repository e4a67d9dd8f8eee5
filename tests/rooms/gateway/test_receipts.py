"""Receipts: what is signed can be verified with the public key alone, and nothing else can."""

from __future__ import annotations

import json
import stat
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from atoll.core.errors import InvalidRequest, SetupError
from atoll.core.types import Entry, Usage
from atoll.gateway.receipts import open_signer, verified, verify

ENTRY = Entry("req-1", "key-1", "max", "eu-west-1", "/v1/chat/completions", 1_795_000_000.1234, "done")
ENTRY = ENTRY._replace(usage=Usage(12, 200, 3), cost=48_000, http_status=200, first_token_ms=35.4, duration_ms=1200.5)
ENTRY = ENTRY._replace(path="eu-central-1:120 eu-west-1:80", stored_in="eu-central-1", rule="process_in=eu store_in=eu")
ENTRY = ENTRY._replace(grade="exact")


def raw(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_receipt_tells_what_the_row_tells(tmp_path: Path):
    told = open_signer(tmp_path).sign(ENTRY, "ab" * 32)
    assert {name: told[name] for name in told if name not in ("signature", "key_id")} == {
        "version": 1,
        "request_id": "req-1",
        "model": "max",
        "weights": "ab" * 32,
        "route": "/v1/chat/completions",
        "status": "done",
        "http_status": 200,
        "processed": [{"region": "eu-central-1", "tokens": 120}, {"region": "eu-west-1", "tokens": 80}],
        "stored_in": "eu-central-1",
        "rule": "process_in=eu store_in=eu",
        "recovery": {"grade": "exact", "verified": True},
        "created_at_ms": 1_795_000_000_123,
        "first_token_ms": 35,
        "duration_ms": 1200,
        "usage": {"input": 12, "output": 200, "cached": 3},
        "cost_nanodollars": 48_000,
    }


def test_anyone_can_verify_it_with_an_ed25519_library_and_canonical_json(tmp_path: Path):
    signer = open_signer(tmp_path)
    told = json.loads(json.dumps(signer.sign(ENTRY._replace(model="grüße"))))
    public = Ed25519PublicKey.from_public_bytes(raw(signer.public_key()["public_key"]))
    signature = raw(told.pop("signature"))
    public.verify(signature, json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def test_the_key_is_made_once_and_kept_to_its_owner(tmp_path: Path):
    first, again = open_signer(tmp_path), open_signer(tmp_path)
    assert first.sign(ENTRY) == again.sign(ENTRY)
    [file] = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    verify(again.sign(ENTRY), first.public)


def test_another_installation_has_another_key(tmp_path: Path):
    (tmp_path / "other").mkdir()
    ours, other = open_signer(tmp_path), open_signer(tmp_path / "other")
    with pytest.raises(InvalidRequest, match="signed with another key"):
        verify(other.sign(ENTRY), ours.public)
    with pytest.raises(InvalidRequest, match="not what was signed"):
        verify({**other.sign(ENTRY), "key_id": ours.key_id}, ours.public)


@pytest.mark.parametrize(
    "change",
    [
        {"rule": "process_in=us"},
        {"cost_nanodollars": 48_001},
        {"processed": [{"region": "eu-central-1", "tokens": 200}]},
        {"recovery": {"grade": "exact", "verified": False}},
        {"extra": 1},
        {"signature": ""},
        {"signature": "not base64"},
        {"signature": None},
        {"version": {1}},
    ],
    ids=str,
)
def test_any_change_is_found(tmp_path: Path, change: dict):
    signer = open_signer(tmp_path)
    told = signer.sign(ENTRY)
    verify(told, signer.public)
    with pytest.raises(InvalidRequest, match="not what was signed"):
        verify({**told, **change}, signer.public)
    with pytest.raises(InvalidRequest, match="not what was signed"):
        verify({**told, "signature": told["signature"] + "!"}, signer.public)
    for name in told.keys() - {"signature", "key_id"}:
        with pytest.raises(InvalidRequest, match="not what was signed"):
            verify({n: v for n, v in told.items() if n != name}, signer.public)


@pytest.mark.parametrize(
    ("grade", "result"),
    [
        ("", None),
        ("fast", None),
        ("exact", True),
        ("exact-text", True),
        ("hot", True),
        ("hot-text>exact-text", True),
        ("hot>exact", True),
        ("exact>fast", False),
    ],
)
def test_what_was_verified(grade: str, result: bool | None):
    assert verified(ENTRY._replace(grade=grade)) is result
    for status in ("failed", "cancelled", "interrupted"):
        broken = ENTRY._replace(grade=grade, status=status)
        assert verified(broken) is None, "it broke off, maybe before its check was over"


def test_a_key_file_that_cannot_be_trusted_is_refused(tmp_path: Path):
    place = tmp_path / "receipts.key"
    open_signer(tmp_path)
    place.chmod(0o644)
    with pytest.raises(SetupError, match=f"can be read by others; chmod 600 {place}"):
        open_signer(tmp_path)
    place.chmod(0o600)
    place.write_bytes(b"nonsense")
    with pytest.raises(SetupError, match="no Ed25519 private key"):
        open_signer(tmp_path)
    other = ec.generate_private_key(ec.SECP256R1())
    place.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(SetupError, match="no Ed25519 private key"):
        open_signer(tmp_path)
    with pytest.raises(SetupError, match="cannot be used: No such file"):
        open_signer(tmp_path / "nowhere")
