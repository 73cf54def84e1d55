"""All of REST as one value, made of the contract of this build: routes, readers, upload forms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from control_plane.access.domain import Rule
from control_plane.access.rules import RULES
from control_plane.gateway.handlers import Handler, Handlers
from control_plane.gateway.models import Models
from control_plane.gateway.openapi import document, note
from control_plane.gateway.requests import RequestReader
from control_plane.gateway.routes import Kind, Route, caller_services, routes_of
from control_plane.gateway.uploads import UploadForm
from control_plane.servers import SERVICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What is served."""

    models: Models
    readers: Sequence[RequestReader]
    forms: Mapping[str, UploadForm]
    """By RPC."""

    @classmethod
    def of_contract(cls) -> Self:
        """Return what the services that callers use offer."""
        models = Models()
        routes = routes_of(caller_services(SERVICES))
        return cls(
            models=models,
            readers=tuple(RequestReader(route, models) for route in routes),
            forms={route.rpc: UploadForm(route, models) for route in routes if route.kind is Kind.UPLOAD},
        )

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes, in the order in which paths are compared."""
        return tuple(reader.route for reader in self.readers)

    @property
    def deadlines(self) -> Mapping[str, timedelta]:
        """How long each RPC takes at most; what the control plane itself allows."""
        return {route.rpc: RULES[route.rpc].deadline for route in self.routes}

    def document(self, rules: Mapping[str, Rule]) -> dict[str, Any]:
        """Return the OpenAPI document."""
        notes = {
            route.rpc: note((str(role) for role in rules[route.rpc].roles), rules[route.rpc].deadline)
            for route in self.routes
        }
        return document(self.readers, self.forms, self.models, notes)

    def served_by(self, handlers: Handlers) -> list[tuple[str, str, str, Handler]]:
        """Return method, path, name and handler of every route."""
        return [
            (
                reader.route.method,
                reader.route.path,
                reader.route.name,
                handlers.of(reader, self.forms.get(reader.route.rpc)),
            )
            for reader in self.readers
        ]
