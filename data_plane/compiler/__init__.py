"""A node that compiles modules for others: runs no agent, takes no order, and never reads a body."""
