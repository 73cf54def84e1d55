"""Template inheritance, channels, rollouts and emergency stops.

Revision 0013. Expand only: a replica of the build before works on beside it.
"""

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None: ...


def downgrade() -> None: ...
