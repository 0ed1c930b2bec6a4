"""`bastide init`: certificates, keys, trust root and configuration of a development set-up in one folder."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

from shared.identity.authority import CertificateAuthority
from shared.identity.jwks import key_set
from shared.keys import FileKeyProvider, SigningKey, files
from shared.statements import TrustedKey, TrustRoot
from shared.transparency.note import Signer

TRUST_DOMAIN = "bastide.local"
LOG_NAME = "bastide.local/audit"
SERVICES = ("audit", "policy-guard", "model-server")
BASE_PORT = 8441
# It becomes part of a file's name, a SPIFFE ID and a DNS name.
CLIENT_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")

# One master key per use; a service holds no key it has no use for.
_USES = {
    "audit": ("sealed", "persons"),
    "policy-guard": ("identity", "outbox"),
    "model-server": ("objects", "outbox"),
}
# One signing key per kind of statement.
_KINDS = {
    "audit": (),
    "policy-guard": ("decision", "identity"),
    "model-server": ("statement",),
}
_IN_TRUST_ROOT = (("policy-guard", "decision"), ("model-server", "statement"))


def create(home: Path, *, base_port: int = BASE_PORT, clients: tuple[str, ...] = ("cli",)) -> None:
    """Create a set-up in `home`, which must be empty or absent.

    Raises FileExistsError, ValueError as `issue_client` does, OSError and KeyFileRefused; `home` is empty again then.

    Ports: base_port + 0.. for gRPC of audit, policy-guard and model-server, + 10.. for their probes.
    """
    if home.exists() and any(home.iterdir()):
        raise FileExistsError(f"{home} is not empty")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.umask(0o077)
    try:
        _fill(home, base_port, clients)
    except BaseException:
        for folder in home.iterdir():
            shutil.rmtree(folder)
        raise


def _fill(home: Path, base_port: int, clients: tuple[str, ...]) -> None:
    (home / "trust").mkdir(mode=0o700)
    CertificateAuthority.create(home / "pki", trust_domain=TRUST_DOMAIN)
    for client in clients:
        issue_client(home, client)
    trusted: list[TrustedKey] = []
    for service in SERVICES:
        folder = home / service
        folder.mkdir(mode=0o700)
        issue_service(home, service)
        FileKeyProvider.create(folder / "keys.json", _USES[service])
        for kind in _KINDS[service]:
            key = SigningKey.create(folder / f"{kind}.pem", name=f"{service}/{kind}")
            if (service, kind) in _IN_TRUST_ROOT:
                trusted.append(TrustedKey.of(key, service=service, kind=kind))
            if kind == "identity":
                (home / "trust" / "jwks.json").write_text(key_set({key.key_id: key.public_key}))
    (home / "trust" / "trust.json").write_text(TrustRoot(keys=tuple(trusted)).model_dump_json(indent=2) + "\n")
    signer = Signer.generate(LOG_NAME)
    files.create(home / "audit" / "log.key", signer.skey.encode())
    (home / "trust" / "log.vkey").write_text(signer.verifier.vkey + "\n")
    files.create(home / "audit" / "lookup.key", secrets.token_bytes(32))
    for position, service in enumerate(SERVICES):
        (home / service / f"{service}.toml").write_text(_configuration(home, service, base_port, position))


def renew(home: Path) -> list[str]:
    """Issue fresh certificates, under new keys, to every service and client of `home`; return their names.

    Running services take them up by themselves.
    """
    for service in SERVICES:
        issue_service(home, service)
    clients = sorted(path.stem for path in (home / "pki" / "clients").glob("*.pem"))
    for client in clients:
        issue_client(home, client)
    return [*SERVICES, *clients]


def issue_service(home: Path, service: str) -> None:
    """Issue a service's certificate, `tls.pem` and `tls.key`, into the folder that holds its other keys."""
    authority = CertificateAuthority(home / "pki", trust_domain=TRUST_DOMAIN)
    authority.issue(service, home / service / "tls", dns=f"{service}.{TRUST_DOMAIN}")


def issue_client(home: Path, name: str) -> None:
    """Issue a client certificate for `spiffe://<trust-domain>/client/<name>` into `pki/clients/`.

    Raises ValueError unless `name` is a whole CLIENT_NAME.
    """
    if not CLIENT_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a client")
    authority = CertificateAuthority(home / "pki", trust_domain=TRUST_DOMAIN)
    authority.issue(f"client/{name}", home / "pki" / "clients" / name, dns=f"{name}.client.{TRUST_DOMAIN}")


def _configuration(home: Path, service: str, base_port: int, position: int) -> str:
    def address(offset: int) -> str:
        return f"127.0.0.1:{base_port + offset}"

    lines = [
        f"# Written by `bastide init`. `python -m services.{service.replace('-', '_')} --config <this> --check-config`",
        "# explains every setting; relative paths count from this folder.",
        f'records = "sqlite:///{home.resolve() / service / "records.db"}"',
        'keys = "keys.json"',
        'trust = "../trust/trust.json"',
    ]
    extra = {
        "audit": ['log_key = "log.key"', 'lookup_key = "lookup.key"', 'tiles = "log"'],
        "policy-guard": ['outbox = "outbox"', 'decision_key = "decision.pem"', 'identity_key = "identity.pem"'],
        "model-server": [
            f'objects = "file://{home.resolve() / service / "objects"}"',
            'outbox = "outbox"',
            'statement_key = "statement.pem"',
            'log_public_key = "../trust/log.vkey"',
        ],
    }
    lines += extra[service]
    lines += [
        "",
        "[server]",
        f'listen = "{address(position)}"',
        f'probes = "{address(10 + position)}"',
        'ports_file = "ports"',
        "",
        "[server.tls]",
        'certificate = "tls.pem"',
        'key = "tls.key"',
        'ca = "../pki/ca.pem"',
        f'trust_domain = "{TRUST_DOMAIN}"',
        "",
        "[[server.issuers]]",
        'issuer = "https://bastide.local/identity"',
        'audience = "bastide"',
        'jwks_file = "../trust/jwks.json"',
    ]
    for name, offset in (("audit", 0), ("guard", 1)):
        lines += ["", f"[{name}]", f'address = "{address(offset)}"']
    return "\n".join(lines) + "\n"
