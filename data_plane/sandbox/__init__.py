"""Runs guests: one jailed worker process each, spoken to in frames. Never decides whether a guest may run."""
