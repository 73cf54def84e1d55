"""`agentfactory verify`: `receipt verify` by a shorter name."""

import typer

from cli.receipts import verify

app = typer.Typer(add_completion=False)
app.command()(verify)
