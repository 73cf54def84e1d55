"""Nodes: their identities, their enrolment, their sessions' records and what operators do to them."""
