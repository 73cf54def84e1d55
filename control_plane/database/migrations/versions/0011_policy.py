"""Policy bundles and decisions.

Revision 0011. Expand only: a replica of the build before works on beside it.
"""

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None: ...


def downgrade() -> None: ...
