"""What is told of a model's version."""

from __future__ import annotations

from bastide.model_server.v1 import catalog_pb2
from bastide.types.v1 import evidence_pb2
from shared.cli.models import version_facts


def digest(byte: bytes) -> evidence_pb2.Digest:
    return evidence_pb2.Digest(algorithm="sha256", value=byte * 32)


def test_a_version_is_shown_with_the_digests_that_bind_it() -> None:
    version = catalog_pb2.ModelVersion(
        name="models/m/versions/1",
        digest=digest(b"\x01"),
        description=catalog_pb2.ModelDescription(template_digest=digest(b"\x02"), tokenizer_digest=digest(b"\x03")),
        provenance=catalog_pb2.Provenance(
            imported=catalog_pb2.Imported(source="directory:m", source_digest=digest(b"\x04"), license="MIT")
        ),
    )
    facts = dict(version_facts(version))
    assert facts["digest"] == "sha256:" + "01" * 32
    assert facts["chat template"] == "sha256:" + "02" * 32
    assert facts["tokenizer"] == "sha256:" + "03" * 32
    assert facts["imported: source_digest"] == "sha256:" + "04" * 32
    assert (facts["imported: source"], facts["imported: license"]) == ("directory:m", "MIT")


def test_a_declared_version_is_shown_without_digests_that_nobody_has() -> None:
    declared = catalog_pb2.Provenance(declared=catalog_pb2.Declared(backend="b", remote_model="r"))
    facts = dict(version_facts(catalog_pb2.ModelVersion(name="models/m/versions/1", provenance=declared)))
    assert facts["chat template"] == ""
    assert facts["declared: remote_model"] == "r"
