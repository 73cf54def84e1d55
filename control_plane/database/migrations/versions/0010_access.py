"""Roles, tenants and identities.

Revision 0010. Expand only: a replica of the build before works on beside it.
"""

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None: ...


def downgrade() -> None: ...
