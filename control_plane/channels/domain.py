"""Channels of templates as values. No I/O."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shared.digests import Digest
from shared.ids import TenantId

CHANNEL_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
"""Never a version: those begin with a digit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateChannel:
    """A name that points at one version of a template at a time."""

    tenant_id: TenantId
    template_name: str
    channel: str
    template_version: str
    template_digest: Digest
    revision: int
    updated_by: str
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMove:
    """A channel after it was set, and how many agents moved with it."""

    channel: TemplateChannel
    agents_moved: int
