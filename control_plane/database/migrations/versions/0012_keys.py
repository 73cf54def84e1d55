"""Keys, their custody and freshness.

Revision 0012. Expand only: a replica of the build before works on beside it.
"""

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None: ...


def downgrade() -> None: ...
