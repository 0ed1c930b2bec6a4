"""Tables of the model server's record store."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(naming_convention={"pk": "pk_%(table_name)s"})

models = sa.Table(
    "models",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("description", sa.String(512), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
)

# What a version is lies in one JSON document whose digest the statement signs; columns serve queries only.
versions = sa.Table(
    "versions",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("manifest", sa.LargeBinary, nullable=False),
    sa.Column("submitter", sa.String(255), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("statement", sa.LargeBinary, nullable=False),
    sa.Column("log_leaf", sa.LargeBinary, nullable=False),
    sa.Column("log_proof", sa.Text, nullable=False),
)

releases = sa.Table(
    "releases",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("arms", sa.JSON, nullable=False),
    sa.Column("previous", sa.BigInteger),
    sa.Column("releaser", sa.String(255), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("statement", sa.LargeBinary, nullable=False),
    sa.Column("log_leaf", sa.LargeBinary, nullable=False),
    sa.Column("log_proof", sa.Text, nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.UniqueConstraint("model", "releaser", "request_id", name="uq_releases_request"),
)

import_jobs = sa.Table(
    "import_jobs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False, unique=True),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("source", sa.String(512), nullable=False),
    sa.Column("license", sa.String(64), nullable=False),
    sa.Column("description", sa.String(512), nullable=False),
    sa.Column("submitter", sa.String(255), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("lease_expires", sa.BigInteger, nullable=False),
    sa.Column("cancelling", sa.Boolean, nullable=False),
    sa.Column("version", sa.Integer),
    sa.Column("failure_reason", sa.String(64), nullable=False),
    sa.Column("failure_message", sa.String(512), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("submitter", "request_id", name="uq_import_jobs_request"),
)

import_events = sa.Table(
    "import_events",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("stage", sa.String(64), nullable=False),
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("unit", sa.String(16), nullable=False),
)
