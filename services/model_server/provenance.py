"""Signed statements of the model server, and the check that a version has its whole chain before it is served."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from services.model_server.catalog import Arm, BrokenChain, Evidence, Manifest, Release, Version
from shared.keys import SigningKey
from shared.statements import Digest, Statement, StatementRefused, Subject, TrustRoot, sign, verify
from shared.transparency.errors import Malformed, Unverified
from shared.transparency.note import Verifier
from shared.transparency.proof import TlogProof

SERVICE = "model-server"
KIND = "statement"
IMPORT = "urn:bastide:model-import:v1"
RELEASE = "urn:bastide:model-release:v1"
# The log leaf of a statement names it by this fact.
FACT = "statement_sha256"


def _hex(digest: str) -> Digest:
    return Digest(sha256=digest.removeprefix("sha256:"))


class Provenance:
    """Makes and verifies statements about versions and releases."""

    def __init__(self, key: SigningKey, trust: TrustRoot, log: Verifier, *, clock: Callable[[], dt.datetime]) -> None:
        """Sign with `key`; believe statements under `trust` that the log with the key `log` holds."""
        self._key = key
        self._trust = trust
        self._log = log
        self._clock = clock

    def import_statement(self, manifest: Manifest, *, submitter: str) -> bytes:
        """Return the signed statement that brings a version in."""
        predicate = _import_predicate(manifest, submitter=submitter)
        return self._sign(IMPORT, [(manifest.name, manifest.digest)], predicate)

    def release_statement(
        self, model: str, generation: int, arms: Sequence[Arm], versions: Sequence[Version], *, releaser: str
    ) -> bytes:
        """Return the signed statement that puts versions in force."""
        return self._sign(
            RELEASE,
            [(version.manifest.name, version.manifest.digest) for version in versions],
            _release_predicate(model, generation, arms, releaser=releaser),
        )

    def check(self, version: Version) -> None:
        """Refuse a version unless statement, digest, submitter and log proof verify, in that order.

        MUST come before anything is decided by the version's facts. Raises BrokenChain.
        """
        manifest, evidence = version.manifest, version.evidence
        statement = self._verified(evidence.statement, IMPORT, manifest.name)
        (subject,) = statement.subject
        if (subject.name, subject.digest) != (manifest.name, _hex(manifest.digest)):
            raise BrokenChain(f"{manifest.name}: the statement is about other bytes")
        if statement.predicate != _import_predicate(manifest, submitter=version.submitter):
            raise BrokenChain(f"{manifest.name}: the statement says something else")
        check_logged(evidence, self._log, manifest.name)

    def check_release(self, release: Release, versions: Sequence[Version]) -> None:
        """Refuse a release unless the log holds its statement, and this names its very versions and their weights.

        Raises BrokenChain.
        """
        link = f"models/{release.model}/releases/{release.generation}"
        statement = self._verified(release.evidence.statement, RELEASE, link)
        named = {(subject.name, subject.digest) for subject in statement.subject}
        expected = {(item.manifest.name, _hex(item.manifest.digest)) for item in versions}
        if named != expected or statement.predicate != _release_predicate(
            release.model, release.generation, release.arms, releaser=release.releaser
        ):
            raise BrokenChain(f"{link}: the statement is about another release")
        check_logged(release.evidence, self._log, link)

    def _sign(self, predicate_type: str, subjects: list[tuple[str, str]], predicate: dict[str, Any]) -> bytes:
        statement = Statement(
            subject=tuple(Subject(name=name, digest=_hex(digest)) for name, digest in subjects),
            predicate_type=predicate_type,
            predicate=predicate,
        )
        return sign(statement, self._key).to_json()

    def _verified(self, envelope: bytes, predicate_type: str, link: str) -> Statement:
        try:
            return verify(
                envelope, self._trust, service=SERVICE, kind=KIND, predicate_type=predicate_type, at=self._clock()
            )
        except StatementRefused as error:
            raise BrokenChain(f"{link}: {error.message}") from None


def _import_predicate(manifest: Manifest, *, submitter: str) -> dict[str, Any]:
    return {"manifest": manifest.model_dump(mode="json"), "by": submitter}


def _release_predicate(model: str, generation: int, arms: Sequence[Arm], *, releaser: str) -> dict[str, Any]:
    return {
        "model": model,
        "generation": generation,
        "arms": [{"version": arm.version, "weight": arm.weight} for arm in arms],
        "by": releaser,
    }


def statement_digest(statement: bytes) -> str:
    """Return the hex SHA-256 by which the log names a statement."""
    return hashlib.sha256(statement).hexdigest()


def check_logged(evidence: Evidence, log: Verifier, link: str) -> None:
    """Refuse evidence whose statement is not the one in a leaf that the log proves. Raises BrokenChain."""
    try:
        TlogProof.parse(evidence.log_proof).verify(evidence.log_leaf, log)
    except (Malformed, Unverified):
        raise BrokenChain(f"{link}: the log does not prove the statement") from None
    fact = f'"{FACT}":"{statement_digest(evidence.statement)}"'.encode()
    if fact not in evidence.log_leaf:
        raise BrokenChain(f"{link}: the log's leaf is about another statement")
