"""Structured logs: one line per event, JSON or for a person, structlog and stdlib alike. Decides nothing.

Secrets are masked by the name of their field and large values are cut, so that neither depends on the one who
logs.
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from enum import StrEnum
from typing import Any, Final, TextIO

# structlog loads rich where it is installed, for tracebacks that we print otherwise: 0.2 s of every start.
_hidden = "rich" not in sys.modules
if _hidden:
    sys.modules["rich"] = None  # type: ignore[assignment]  # so that importing it fails
import structlog  # noqa: E402
import structlog.typing  # noqa: E402

if _hidden:
    del sys.modules["rich"]

MAX_VALUE_CHARS: Final = 2048
MAX_ITEMS: Final = 32
MAX_NESTING: Final = 4
MASK: Final = "***"

_SECRET_WORDS: Final = (
    "password",
    "passwd",
    "secret",
    "token",
    "private",
    "credential",
    "authorization",
    "cookie",
    "api_key",
    "salt",
    "nonce",
    "seed",
    "dsn",
    "database_url",
)
_NOT_SECRET: Final = frozenset({"fencing_token", "page_token", "token_id"})
"""Names that hold one of the words and say nothing secret."""


class LogStyle(StrEnum):
    """How lines look."""

    JSON = "json"
    HUMAN = "human"


def configure_logging(level: str, style: LogStyle, *, stream: TextIO | None = None) -> None:
    """Route structlog and stdlib logging of this process to one stream (default: standard error).

    May be called again; the last call wins.

    Raises:
        ValueError: The level is not a name of the stdlib's levels.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r} is not one of debug, info, warning, error, critical")
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    after: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if style is LogStyle.JSON:
        after += [structlog.processors.format_exc_info, mask_and_cut, structlog.processors.JSONRenderer()]
    else:
        after += [mask_and_cut, _console()]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=after))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *(step for step in before if not isinstance(step, structlog.stdlib.ExtraAdder)),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _console() -> structlog.dev.ConsoleRenderer:
    # Never the traceback with locals: they hold bodies, salts and tokens.
    return structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger; call it with a constant sentence and data in named fields."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def mask_and_cut(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask secrets and cut large values of one event, at every depth (structlog processor)."""
    return {name: _clean(name, value, MAX_NESTING) for name, value in event.items()}


def is_secret_name(name: str) -> bool:
    """Whether the value of a field of this name is masked."""
    lower = name.lower()
    return lower not in _NOT_SECRET and any(word in lower for word in _SECRET_WORDS)


def _clean(name: str, value: Any, depth: int) -> Any:
    if is_secret_name(name):
        return MASK
    if value is None or isinstance(value, bool | int | float) or name == "exc_info":
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping) and depth > 0:
        items = list(value.items())[:MAX_ITEMS]
        return {str(key): _clean(str(key), item, depth - 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth > 0:
        return [_clean("", item, depth - 1) for item in list(value)[:MAX_ITEMS]]
    text = value if isinstance(value, str) else str(value)
    # Exceptions are the one long text that somebody needs whole; twice the stack of a deep call is enough.
    bound = MAX_VALUE_CHARS * 8 if name == "exception" else MAX_VALUE_CHARS
    return text if len(text) <= bound else f"{text[:bound]}… ({len(text)} characters)"
