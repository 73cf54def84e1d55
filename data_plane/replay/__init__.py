"""Runs an execution again and says whether it came out the same."""
