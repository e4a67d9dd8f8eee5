"""What is stored for each key is bounded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("responses", sa.Column("size", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.execute("UPDATE responses SET size = length(body)")
    op.create_index("responses_of_key", "responses", ["key_id", "expires_at", "size"])


def downgrade() -> None:
    op.drop_index("responses_of_key", "responses")
    op.drop_column("responses", "size")
