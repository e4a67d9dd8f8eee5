"""Where a request went and under which rule; a key's policy; gateways and operators' settings of regions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ADDED = ("path", "stored_in", "rule", "grade", "gateway")


def upgrade() -> None:
    for name in ADDED:
        op.add_column("entries", sa.Column(name, sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("keys", sa.Column("policy", sa.Text, nullable=False, server_default="{}"))
    op.create_table(
        "gateways",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("seen", sa.Double, nullable=False),
    )
    op.create_table(
        "places",
        sa.Column("region_id", sa.Text, primary_key=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    for table in ("places", "gateways"):
        op.drop_table(table)
    op.drop_column("keys", "policy")
    for name in reversed(ADDED):
        op.drop_column("entries", name)
