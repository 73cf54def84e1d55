"""`agentfactory sign`: see `cli.guests.send`."""

from cli.guests.send import sign_app as app

__all__ = ["app"]
