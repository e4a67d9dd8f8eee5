"""Who is who between a gateway and its regions: the gateway's own certificate authority, and TLS in both directions.

A region's certificate is good for serving under its own name only, the gateway's for asking only, so neither a region
nor anyone else can pass for the gateway, and no region for another. Keys are EC P-256 and never leave their machine.
"""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atoll.core.errors import Forbidden, InvalidRequest, SetupError

YEAR = datetime.timedelta(days=365)
SLACK = datetime.timedelta(minutes=5)
RENEW = datetime.timedelta(days=30)
GATEWAY = "gateway.atoll"
MAX_AUTHORITIES = 256


def dns_name(region: str) -> str:
    """What the certificate of a region says, wherever it listens."""
    return f"{region}.region.atoll"


@dataclass(frozen=True, slots=True)
class Authority:
    """The gateway's CA, in the folder `place`."""

    place: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def sign_region(self, request: str, region: str) -> str:
        """The certificate for a signing request in PEM. Raises InvalidRequest or Forbidden."""
        try:
            asked = x509.load_pem_x509_csr(request.encode())
            public, valid = asked.public_key(), asked.is_signature_valid
        except (ValueError, TypeError):
            raise InvalidRequest("it must be a certificate signing request in PEM", param="csr") from None
        if not valid or not isinstance(public, ec.EllipticCurvePublicKey):
            raise InvalidRequest("it must be signed with the EC key that it names", param="csr")
        named = [a.value for a in asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if named != [dns_name(region)]:
            raise Forbidden(f"the signing request names {named}, but the invitation is for '{dns_name(region)}'")
        return _pem(self._issue(public, dns_name(region), ExtendedKeyUsageOID.SERVER_AUTH))

    def context(self, region: str, vouched: str = "") -> ssl.SSLContext:
        """For the gateway to ask `region`: shows the gateway's certificate, takes no other region's. `vouched`: the CA
        (PEM) that the region joined, if that is another gateway's."""
        key, certificate = self.place / "gateway.key", self.place / "gateway.pem"
        if not certificate.exists() or _ends_soon(certificate):
            private = ec.generate_private_key(ec.SECP256R1())
            write(key, _private(private))
            write(certificate, _pem(self._issue(private.public_key(), GATEWAY, ExtendedKeyUsageOID.CLIENT_AUTH)))
        context = RegionContext(ssl.PROTOCOL_TLS_CLIENT)
        context.peer = dns_name(region)
        return _secured(context, certificate, key, vouched or self.pem)

    def _issue(self, public: ec.EllipticCurvePublicKey, name: str, usage: x509.ObjectIdentifier) -> x509.Certificate:
        return (
            _begun(name, self.certificate.subject, public, YEAR)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
            .add_extension(x509.ExtendedKeyUsage([usage]), True)
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(_usage(False), True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
            .sign(self.key, SHA256())
        )


class RegionContext(ssl.SSLContext):
    """Expects the certificate to name `peer`, whatever address was dialled."""

    peer = ""

    def wrap_bio(self, *streams: Any, server_hostname: Any = None, **more: Any) -> ssl.SSLObject:
        return super().wrap_bio(*streams, server_hostname=self.peer, **more)


def open_authority(place: Path) -> Authority:
    """The CA kept in the folder `place`, made at the first use. Raises SetupError."""
    key, certificate = place / "ca.key", place / "ca.pem"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not certificate.exists():
            _found(key, certificate)
        if key.stat().st_mode & 0o077:
            raise SetupError(f"{key} vouches for regions and can be read by others; chmod 600 {key}")
        private = load_pem_private_key(key.read_bytes(), None)
        made = x509.load_pem_x509_certificate(certificate.read_bytes())
    except OSError as error:
        raise SetupError(f"the certificate authority in {place} cannot be used: {error.strerror}") from None
    except ValueError as error:
        raise SetupError(f"the certificate authority in {place} is damaged: {error}; restore it") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != made.public_key():
        raise SetupError(f"{key} is not the key of {certificate}; restore them together")
    return Authority(place, private, made)


def request_certificate(key: ec.EllipticCurvePrivateKey, region: str) -> str:
    """A signing request in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns_name(region))])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA256())
    return made.public_bytes(Encoding.PEM).decode()


def check_answer(certificate: str, ca: str, key: ec.EllipticCurvePrivateKey, expected: str, region: str) -> None:
    """What a gateway answered to a signing request: the CA must be the one `expected` by fingerprint, the certificate
    signed by it, for this key and this region. Raises Forbidden."""
    try:
        authority = x509.load_pem_x509_certificate(ca.encode())
        made = x509.load_pem_x509_certificate(certificate.encode())
        if fingerprint(authority) != expected:
            raise Forbidden("who answered is not the gateway that made the token: its certificate authority differs")
        made.verify_directly_issued_by(authority)
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        raise Forbidden("the gateway's answer holds no certificate that its authority signed") from None
    if made.public_key() != key.public_key() or names.get_values_for_type(x509.DNSName) != [dns_name(region)]:
        raise Forbidden("the gateway's answer holds a certificate for another key or region")


class Trust:
    """Whom a region lets in that listens with what lies in `place`: gateways of the CA that it joined, and of those
    that a gateway has told it of; `told` holds their fingerprints."""

    def __init__(self, place: Path) -> None:
        self._kept = place / "gateways.pem"
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.told: frozenset[str] = frozenset()
        try:
            _secured(self.context, place / "region.pem", place / "region.key", (place / "ca.pem").read_text())
            if self._kept.exists():
                self.told = self._let_in(self._kept.read_text())
        except (OSError, ValueError, InvalidRequest) as error:
            raise SetupError(f"who is let in, as {place} tells, cannot be read: {error}; join again") from None

    def tell(self, authorities: Sequence[str]) -> None:
        """These (PEM) are the gateways' CAs now. New ones are let in at once; those that left no longer after a
        restart. Raises InvalidRequest."""
        if len(authorities) > MAX_AUTHORITIES:
            raise InvalidRequest(f"at most {MAX_AUTHORITIES} authorities are let in", param="authorities")
        together = "".join(authorities)
        self.told = self._let_in(together)
        write(self._kept, together)

    def _let_in(self, authorities: str) -> frozenset[str]:
        try:
            found = x509.load_pem_x509_certificates(authorities.encode())
            self.context.load_verify_locations(cadata=authorities)
        except (ValueError, ssl.SSLError):
            raise InvalidRequest("they must be certificates in PEM", param="authorities") from None
        return frozenset(fingerprint(each) for each in found)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return _private(key)


def fingerprint(certificate: x509.Certificate) -> str:
    return sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def fingerprint_of(pem: str) -> str:
    """Raises SetupError."""
    try:
        return fingerprint(x509.load_pem_x509_certificate(pem.encode()))
    except ValueError as error:
        raise SetupError(f"a certificate authority in the database is damaged: {error}") from None


def write(place: Path, text: str) -> None:
    """All of the file or nothing, for its owner alone."""
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(place)


def _found(key: Path, certificate: Path) -> None:
    private, name = ec.generate_private_key(ec.SECP256R1()), f"Atoll {os.urandom(4).hex()}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        _begun(name, subject, private.public_key(), 20 * YEAR)
        .add_extension(x509.BasicConstraints(True, 0), True)
        .add_extension(_usage(True), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False)
        .sign(private, SHA256())
    )
    write(key, _private(private))
    write(certificate, _pem(made))


def _begun(
    name: str, issuer: x509.Name, public: ec.EllipticCurvePublicKey, lasts: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + lasts)
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _secured(context: Any, certificate: Path, key: Path, ca: str) -> Any:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=ca)
    except (OSError, ssl.SSLError) as error:
        raise SetupError(f"the certificate {certificate} cannot be used: {error}; join the region again") from None
    return context


def _ends_soon(certificate: Path) -> bool:
    ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return ends - datetime.datetime.now(datetime.UTC) < RENEW


def _private(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
