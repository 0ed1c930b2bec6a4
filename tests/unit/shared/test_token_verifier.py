"""Tokens of an organisation's own issuer: keys come by URL, rotate, fail and grow stale."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm

from shared.errors import Unauthenticated, Unavailable
from shared.identity.issuers import MAX_JWKS_BYTES, IssuerSettings
from shared.identity.jwks import key_set
from shared.identity.principal import Workload
from shared.identity.tokens import MAX_TOKEN_BYTES, TokenVerifier, thumbprint

ISSUER, AUDIENCE = "https://idp.example", "bastide"
WORKLOAD = Workload(spiffe_id="spiffe://bastide.local/client/cli", certificate_sha256=bytes(32))


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class KeyServer:
    """An https server of one document."""

    def __init__(self, certificate: Path) -> None:
        self.body = b""
        self.status = 200
        self.location = ""
        self.asked = 0
        self.drips = 0.0
        self.gone = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(outer.status)
                if outer.location:
                    self.send_header("Location", outer.location)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                if not outer.drips:
                    self.wfile.write(outer.body)
                    return
                for byte in outer.body:
                    try:
                        self.wfile.write(bytes([byte]))
                    except OSError:
                        break
                    outer.gone.wait(outer.drips)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}/jwks.json"

    def publish(self, **keys: Ed25519PrivateKey) -> None:
        self.body = key_set({name: key.public_key() for name, key in keys.items()}).encode()

    def close(self) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "idp")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "idp.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


@pytest.fixture
def server(certificate: Path) -> Iterator[KeyServer]:
    server = KeyServer(certificate)
    yield server
    server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings(server: KeyServer, certificate: Path) -> IssuerSettings:
    return IssuerSettings(
        issuer=ISSUER, audience=AUDIENCE, jwks_url=server.url, jwks_ca_file=certificate, bound=False, max_age_seconds=60
    )


@pytest.fixture
def verifier(settings: IssuerSettings, clock: Clock) -> TokenVerifier:
    return TokenVerifier([settings], clock=clock)


def token(
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, kid: str, clock: Clock, *, algorithm: str = "EdDSA",
    **claims: Any,
) -> str:  # fmt: skip
    stated = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada@example.org", "tenant": "acme", "roles": ["user"]}
    times = {"iat": clock.now, "exp": clock.now + 3600}
    return jwt.encode(stated | times | claims, key, algorithm=algorithm, headers={"kid": kid})


async def test_keys_are_fetched_once_and_again_when_a_new_one_signs(
    server: KeyServer, verifier: TokenVerifier, clock: Clock
) -> None:
    first, second = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    server.publish(a=first)
    for _ in range(3):
        assert (await verifier.verify(token(first, "a", clock), WORKLOAD)).subject == "ada@example.org"
    assert server.asked == 1
    server.publish(a=first, b=second)
    clock.now += 2
    assert (await verifier.verify(token(second, "b", clock), WORKLOAD)).tenant == "acme"
    assert server.asked == 2


async def test_a_withdrawn_key_is_refused_although_its_token_was_verified_before(
    server: KeyServer, verifier: TokenVerifier, clock: Clock
) -> None:
    first, second = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    server.publish(a=first)
    old = token(first, "a", clock)
    await verifier.verify(old, WORKLOAD)
    server.publish(b=second)
    clock.now += 31
    with pytest.raises(Unauthenticated):
        await verifier.verify(old, WORKLOAD)


async def test_the_last_good_set_serves_while_the_issuer_is_away_but_not_for_ever(
    server: KeyServer, verifier: TokenVerifier, clock: Clock
) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    await verifier.verify(token(key, "a", clock), WORKLOAD)
    server.status = 503
    clock.now += 50
    await verifier.verify(token(key, "a", clock), WORKLOAD)
    clock.now += 11
    with pytest.raises(Unavailable):
        await verifier.verify(token(key, "a", clock), WORKLOAD)
    server.status = 200
    clock.now += 2
    await verifier.verify(token(key, "a", clock), WORKLOAD)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"keys": 3}', b'{"keys": [{"kty": "OKP"}]}', b'{"keys": []}' + b" " * MAX_JWKS_BYTES],
)
async def test_a_set_that_makes_no_sense_replaces_nothing(
    server: KeyServer, verifier: TokenVerifier, clock: Clock, body: bytes
) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    await verifier.verify(token(key, "a", clock), WORKLOAD)
    server.body = body
    clock.now += 31
    await verifier.verify(token(key, "a", clock), WORKLOAD)
    assert server.asked == 2


async def test_unknown_keys_cannot_make_us_ask_more_than_once_a_second(
    server: KeyServer, verifier: TokenVerifier, clock: Clock
) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    await verifier.verify(token(key, "a", clock), WORKLOAD)
    clock.now += 5
    for number in range(20):
        with pytest.raises(Unauthenticated):
            await verifier.verify(token(key, f"unknown-{number}", clock), WORKLOAD)
    assert server.asked == 2


async def test_an_issuer_that_drips_holds_nobody_up_who_has_the_key(
    server: KeyServer, verifier: TokenVerifier, clock: Clock
) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    good = token(key, "a", clock)
    await verifier.verify(good, WORKLOAD)
    server.drips = 0.5
    clock.now += 31
    first = asyncio.create_task(verifier.verify(good, WORKLOAD))
    await asyncio.sleep(0)
    for _ in range(20):
        await verifier.verify(good, WORKLOAD)
    assert not first.done()
    assert (await asyncio.wait_for(first, 10)).subject == "ada@example.org"
    assert server.asked == 2


async def test_a_caller_who_goes_away_does_not_take_the_keys_from_others(
    server: KeyServer, verifier: TokenVerifier, clock: Clock
) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    callers = [asyncio.create_task(verifier.verify(token(key, "a", clock), WORKLOAD)) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    for caller in callers[1:]:
        assert (await caller).subject == "ada@example.org"
    assert server.asked == 1


@pytest.mark.parametrize(
    "stranger",
    [{"kty": "AKP", "alg": "ML-DSA-65", "kid": "new", "pub": "AA"}, {"kty": "oct", "k": "AA"}, {"kid": "x"}, 3],
    ids=str,
)
async def test_keys_that_are_not_understood_are_passed_over(
    server: KeyServer, verifier: TokenVerifier, clock: Clock, stranger: Any
) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    document = json.loads(server.body)
    server.body = json.dumps({"keys": [stranger, *document["keys"]]}).encode()
    assert await verifier.verify(token(key, "a", clock), WORKLOAD)


async def test_a_redirect_is_not_followed(server: KeyServer, verifier: TokenVerifier, clock: Clock) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    server.status, server.location = 302, server.url
    with pytest.raises(Unavailable):
        await verifier.verify(token(key, "a", clock), WORKLOAD)
    assert server.asked == 1


async def test_another_authoritys_certificate_is_refused(server: KeyServer, clock: Clock) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    settings = IssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=server.url, bound=False)
    with pytest.raises(Unavailable):
        await TokenVerifier([settings], clock=clock).verify(token(key, "a", clock), WORKLOAD)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"aud": "other"},
        {"exp": 1_800_000_000 - 10},
        {"nbf": 1_800_000_000 + 60},
        {"iat": 1_800_000_000 + 60},
        {"exp": "soon"},
        {"tenant": ""},
        {"tenant": 3},
        {"roles": ["user", ""]},
        {"roles": "administrator"},
        {"roles": {"administrator": 1}},
        {"amr": "mfa"},
        {"amr": [1]},
        {"cnf": "x"},
        {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}},
        {"cnf": {"x5t#S256": "AAAA", "jwk": {"kty": "OKP"}}},
        {"sub": "a" * 256},
        {"sub": "ada\x00@example.org"},
        {"cnf": {"x5t#S256": 3}},
        {"exp": float("inf")},
        {"exp": True},
        {"nbf": float("nan")},
        {"auth_time": 1e300},
        {"auth_time": -1e18},
        {"auth_time": "now"},
        {"sub": "spiffe://bastide.local/client/other"},
    ],
    ids=str,
)
async def test_a_token_that_says_something_else_is_refused(
    server: KeyServer, verifier: TokenVerifier, clock: Clock, claims: dict[str, Any]
) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    with pytest.raises(Unauthenticated):
        await verifier.verify(token(key, "a", clock, **claims), WORKLOAD)


async def test_an_issuer_whose_tokens_are_bound_has_none_taken_that_is_not(
    server: KeyServer, settings: IssuerSettings, clock: Clock
) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    bound = TokenVerifier([settings.model_copy(update={"bound": True})], clock=clock)
    binding = {"x5t#S256": thumbprint(WORKLOAD.certificate_sha256)}
    assert await bound.verify(token(key, "a", clock, cnf=binding), WORKLOAD)
    for claims in ({}, {"cnf": None}):
        with pytest.raises(Unauthenticated):
            await bound.verify(token(key, "a", clock, **claims), WORKLOAD)


async def test_an_algorithm_that_the_issuer_may_not_use_is_refused_although_its_key_is_published(
    server: KeyServer, settings: IssuerSettings, clock: Clock
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    published = {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "a", "alg": "ES256"}
    server.body = json.dumps({"keys": [published]}).encode()
    signed = token(key, "a", clock, algorithm="ES256")
    wider = settings.model_copy(update={"algorithms": ("EdDSA", "ES256")})
    assert await TokenVerifier([wider], clock=clock).verify(signed, WORKLOAD)
    with pytest.raises(Unauthenticated):
        await TokenVerifier([settings], clock=clock).verify(signed, WORKLOAD)


async def test_a_key_that_is_published_for_encryption_signs_nothing(
    server: KeyServer, verifier: TokenVerifier, clock: Clock
) -> None:
    signing, encrypting = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    server.publish(a=signing, b=encrypting)
    document = json.loads(server.body)
    document["keys"][1]["use"] = "enc"
    server.body = json.dumps(document).encode()
    assert await verifier.verify(token(signing, "a", clock), WORKLOAD)
    with pytest.raises(Unauthenticated):
        await verifier.verify(token(encrypting, "b", clock), WORKLOAD)


async def test_a_token_is_taken_up_to_its_limit_and_not_beyond(
    server: KeyServer, verifier: TokenVerifier, clock: Clock
) -> None:
    key = Ed25519PrivateKey.generate()
    server.publish(a=key)
    roles = ["r" * 200] * 29
    short, long = (token(key, "a", clock, roles=[*roles, *more]) for more in ([], ["r" * 200]))
    assert len(short) <= MAX_TOKEN_BYTES < len(long)
    assert await verifier.verify(short, WORKLOAD)
    with pytest.raises(Unauthenticated):
        await verifier.verify(long, WORKLOAD)


@pytest.mark.parametrize("url", ["http://idp.example/jwks", "file:///etc/passwd", "ftp://idp.example/jwks"])
def test_keys_by_anything_but_https_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        IssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=url)
