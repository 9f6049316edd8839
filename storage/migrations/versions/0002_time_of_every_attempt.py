"""the time of every attempt

Reason: a resumed run counted only its last attempt's time, and said that it had just been started.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("attempt_at", sa.DateTime(), nullable=True))
    op.add_column("runs", sa.Column("trained_seconds", sa.Double(), nullable=False, server_default="0"))
    op.execute("UPDATE runs SET attempt_at = started_at")
    op.execute(
        "UPDATE runs SET trained_seconds = (julianday(ended_at) - julianday(started_at)) * 86400 "
        "WHERE started_at IS NOT NULL AND ended_at IS NOT NULL"
    )


def downgrade() -> None:
    op.drop_column("runs", "trained_seconds")
    op.drop_column("runs", "attempt_at")
