"""Dispatch: the live sessions of this replica, orders down, receipts up, leases between them."""
