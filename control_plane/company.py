"""Whether more than one tenant is active. Memory only.

What is fair costs something: small groups, few orders at once. A tenant that is alone need not pay for it.
"""

from datetime import timedelta
from typing import Final

from shared.ids import TenantId

COMPANY_LASTS: Final = timedelta(seconds=30)
"""How long after a tenant's newest call the others reckon with another one."""


class Company:
    """The tenants that came lately. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._newest: TenantId | None = None
        self._newest_at = 0.0
        self._other_at: float | None = None
        """When somebody else than the newest came last."""

    def came(self, tenant_id: TenantId, now: float) -> None:
        """Note that something of the tenant is done."""
        if self._newest is not None and tenant_id != self._newest:
            self._other_at = self._newest_at
        self._newest, self._newest_at = tenant_id, now

    def is_mixed(self, now: float) -> bool:
        """Whether several tenants came lately."""
        return self._other_at is not None and now - self._other_at < COMPANY_LASTS.total_seconds()
