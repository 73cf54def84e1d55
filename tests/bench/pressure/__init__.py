"""Behaviour past saturation: a flood of one tenant, four times the capacity, memory."""
