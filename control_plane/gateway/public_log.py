"""The transparency log for everybody: its checkpoint and its tiles over HTTP, as C2SP tlog-tiles has them.

No identity is asked for, none is passed on. No entry bundles: leaves are salted commitments, what they commit
to comes through authorised RPCs alone. What was served once stays true, so caches in front may keep it.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, NamedTuple

from agentfactory.v1 import audit_pb2
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from control_plane.gateway.calls import ControlPlane
from control_plane.gateway.handlers import Handler
from control_plane.gateway.routes import Route
from shared.cache import Cache, CacheBounds
from shared.clock import Clock
from shared.errors import NotFoundError, UnavailableError

PREFIX: Final = "/log"
CHECKPOINT: Final = "/agentfactory.v1.AuditService/GetCheckpoint"
TILE: Final = "/agentfactory.v1.AuditService/GetLogTile"

CHECKPOINT_LIFE: Final = timedelta(seconds=1)
TILE_LIFE: Final = timedelta(hours=1)
MAX_TILES: Final = 1024
"""Kept here, of 8 KiB each at most."""
MAX_ASKING: Final = 16
"""Requests that wait for the control plane: strangers share one lane there with nodes that enroll."""

WHOLE: Final = 256
_WHOLE_AGE: Final = "public, max-age=31536000, immutable"
_PART_AGE: Final = "public, max-age=3600"
_CHECKPOINT_AGE: Final = f"public, max-age={int(CHECKPOINT_LIFE.total_seconds())}"
_TILE_PATH: Final = re.compile(
    r"(?P<level>[0-7])/(?P<index>(?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


class TilePath(NamedTuple):
    """Which hashes."""

    level: int
    place: int
    width: int

    @classmethod
    def parse(cls, text: str) -> "TilePath":
        """Return what a path below ``/log/tile/`` names.

        Raises:
            NotFoundError: It is no path of a tile, or not as it is written.
        """
        match = _TILE_PATH.fullmatch(text)
        if match is not None:
            place = int(match["index"].replace("x", "").replace("/", ""))
            found = cls(int(match["level"]), place, int(match["width"] or WHOLE))
            if found.width <= WHOLE and str(found) == text:
                return found
        raise NotFoundError(
            "that is no path of a tile", hint="see https://c2sp.org/tlog-tiles: tile/0/x001/234.p/56"
        )

    def __str__(self) -> str:
        digits = str(self.place)
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        whole = f"{self.level}/" + "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        return whole if self.width == WHOLE else f"{whole}.p/{self.width}"


class PublicLog:
    """Makes the handlers of the log's paths."""

    def __init__(self, *, control_plane: ControlPlane, routes: Sequence[Route], clock: Clock) -> None:
        self._control_plane = control_plane
        self._routes = {route.rpc: route for route in routes}
        self._checkpoints = Cache[str, bytes](
            bounds=CacheBounds(entries=1, life=CHECKPOINT_LIFE), clock=clock
        )
        self._tiles = Cache[TilePath, bytes](
            bounds=CacheBounds(entries=MAX_TILES, life=TILE_LIFE), clock=clock
        )
        self._asking = 0

    def served(self) -> list[tuple[str, str, str, Handler]]:
        """Return method, path, name and handler of each route."""
        return [
            ("GET", PREFIX + "/checkpoint", "LogCheckpoint", self.checkpoint),
            ("GET", PREFIX + "/tile/{tile:path}", "LogTile", self.tile),
        ]

    async def checkpoint(self, _: Request) -> Response:
        """Answer with the newest checkpoint: a witnessed one, where the log has a quorum of witnesses."""
        note = await self._checkpoints.get_or_load("", self._load_checkpoint)
        return Response(
            note, media_type="text/plain; charset=utf-8", headers={"Cache-Control": _CHECKPOINT_AGE}
        )

    async def tile(self, request: Request) -> Response:
        """Answer with the hashes of a tile."""
        path = TilePath.parse(request.path_params["tile"])
        hashes = await self._tiles.get_or_load(path, lambda: self._load_tile(path))
        age = _WHOLE_AGE if path.width == WHOLE else _PART_AGE
        return Response(hashes, media_type="application/octet-stream", headers={"Cache-Control": age})

    async def _load_checkpoint(self) -> bytes:
        answer = await self._ask(CHECKPOINT, audit_pb2.GetCheckpointRequest())
        assert isinstance(answer, audit_pb2.GetCheckpointResponse)
        return answer.witnessed or answer.checkpoint

    async def _load_tile(self, path: TilePath) -> bytes:
        answer = await self._ask(
            TILE, audit_pb2.GetLogTileRequest(level=path.level, index=path.place, width=path.width)
        )
        assert isinstance(answer, audit_pb2.GetLogTileResponse)
        return answer.hashes

    async def _ask(self, rpc: str, request: Message) -> Message:
        if self._asking >= MAX_ASKING:
            raise UnavailableError(
                f"{MAX_ASKING} readers of the log wait here", hint="try again", retry_after=CHECKPOINT_LIFE
            )
        self._asking += 1
        try:
            return await self._control_plane.unary(
                self._routes[rpc], request, self._control_plane.anonymous()
            )
        finally:
            self._asking -= 1
