"""A region that joined is kept with where it listens and who vouches for it; those without join again."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DELETE FROM facts WHERE name LIKE 'joined %'")


def downgrade() -> None:
    op.execute("DELETE FROM facts WHERE name LIKE 'joined %' OR name LIKE 'authority %'")
