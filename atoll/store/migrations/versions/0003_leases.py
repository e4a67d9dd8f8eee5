"""The quota that gateways hold of each key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pools",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("pool", sa.Text, nullable=False),
    )
    op.create_table(
        "reported",
        sa.Column("holder", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("period", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("nano", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for table in ("reported", "pools"):
        op.drop_table(table)
