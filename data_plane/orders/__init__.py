"""Decides whether an order may run on this node. Runs nothing."""
