"""Builds what hands out the ingredients of executions."""

from control_plane.replay.service import ReplayService
from control_plane.replay.servicer import ReplayServicer
from control_plane.replay.store import PostgresIngredientStore
from control_plane.templates.catalog import TemplateCatalog
from control_plane.wiring.base import Base
from control_plane.wiring.stores import Stores


def build_replay(base: Base, stores: Stores, catalog: TemplateCatalog) -> ReplayServicer:
    store = PostgresIngredientStore(base.database)
    return ReplayServicer(ReplayService(store=store, bodies=stores.executions, modules=catalog))
