"""mends of a dataset

Reason: what a person mends in a dataset is done while its rows are read, so it has to be kept beside its mapping.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("mends", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("datasets", "mends")
