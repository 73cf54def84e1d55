"""`agentfactory sandbox archive`: keep the worker of today for the replays of tomorrow."""

from pathlib import Path
from typing import Annotated

import typer

from cli import output
from cli.output import Json
from cli.settings import DataDir, read_settings


def archive(
    workers: Annotated[
        Path | None, typer.Option("--workers", help="The archive; absent: that of the data folder.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Keep the installed worker by its digest, so that its receipts can be replayed after an upgrade.

    Example: agentfactory sandbox archive --workers /srv/agentfactory/workers
    """
    from agentfactory_engine import worker_path

    from data_plane.replay.workers import archive_worker

    folder = workers or read_settings(data_dir).data_dir / "workers"
    digest = archive_worker(Path(worker_path()), folder)
    if output.wants_json():
        output.data({"worker": digest, "archive": str(folder)})
        return
    output.note(f"{folder} holds the installed worker")
    print(digest)
