"""`agentfactory publish`: see `cli.guests.send`."""

from cli.guests.send import publish_app as app

__all__ = ["app"]
