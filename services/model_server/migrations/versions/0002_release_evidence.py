"""Releases: the log's proof of their statement, and where a rollback leads. Those made before MUST be made again."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. The catalogue never had gaps between generations, and no rollback of a rollback went further."""
    with op.batch_alter_table("releases") as table:
        table.add_column(sa.Column("previous", sa.BigInteger))
        table.add_column(sa.Column("log_leaf", sa.LargeBinary, nullable=False, server_default=sa.text("''")))
        table.add_column(sa.Column("log_proof", sa.Text, nullable=False, server_default=""))
    op.execute("UPDATE releases SET previous = generation - 1 WHERE generation > 1")
