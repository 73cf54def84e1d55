"""A client of Vault or OpenBao: logs in by AppRole, keeps its token alive. Knows no engine and no path.

The library is synchronous: each call runs in one of a few threads of its own. Whatever goes wrong with the
server comes out as one error, after which it is left alone for a moment, longer each time.
"""

import asyncio
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import hvac
import hvac.exceptions
import requests

from shared.clock import Clock
from shared.errors import KeyUnavailableError, NotFoundError, SettingsError
from shared.key_files import read_secret_file
from shared.logs import get_logger
from shared.vault_access import VaultAccess

logger = get_logger(__name__)

T = TypeVar("T")

MAX_THREADS: Final = 8
"""Calls that are under way at once."""
MAX_WAITING: Final = 64
"""Calls under way and waiting; beyond it a caller is refused at once."""
MAX_SECRET_ID_BYTES: Final = 4096
FIRST_PAUSE: Final = timedelta(milliseconds=100)
MAX_PAUSE: Final = timedelta(seconds=5)
RENEW_BELOW: Final = 1 / 3
"""A token with less than this share of its life left is renewed."""
SHORTENED: Final = 1 / 2
"""A renewal that gives less than this share of the first life is followed by a login: the end is near."""


@dataclass(slots=True, kw_only=True)
class _Token:
    client: hvac.Client = field(repr=False)
    life: float
    """Seconds that the login gave; 0: it never ends."""
    renewable: bool
    renew_at: float
    ends_at: float
    """Monotonic seconds."""


class VaultClient:
    """One login, used by all calls of a process. Used from one event loop; `close` ends its threads."""

    def __init__(self, access: VaultAccess, *, clock: Clock) -> None:
        """Contacts nobody.

        Raises:
            SettingsError: The file of certificates cannot be used.
        """
        self._access = access
        self._clock = clock
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="vault")
        self._http = _http(access)
        self._token: _Token | None = None
        self._login = asyncio.Lock()
        self._waiting = 0
        self._pause = timedelta(0)
        self._silent_until = 0.0
        self._last_problem = ""

    async def call(self, work: Callable[[hvac.Client], T]) -> T:
        """Return what `work` returns; it runs in a thread, with a client that is logged in.

        A refusal is tried once more after a new login: the token may have ended before its time.

        Raises:
            KeyUnavailableError: The server is away, sealed, refuses the login or the request, has been so a
                moment ago, or too many calls wait. The message says which.
            NotFoundError: The server knows no such path.
        """
        if self._waiting >= MAX_WAITING:
            raise KeyUnavailableError(f"{self._waiting} calls wait for the vault already")
        if self._clock.monotonic() < self._silent_until:
            raise KeyUnavailableError(f"the vault is left alone for a moment: {self._last_problem}")
        self._waiting += 1
        try:
            return await self._call(work)
        except hvac.exceptions.InvalidPath as error:
            raise NotFoundError("the vault holds nothing there") from error
        except (hvac.exceptions.VaultError, requests.RequestException) as error:
            raise self._unavailable(error) from error
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the threads; calls under way end by their own deadline."""
        self._token = None
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    async def _call(self, work: Callable[[hvac.Client], T]) -> T:
        token = await self._living_token()
        try:
            answer = await self._in_thread(lambda: work(token.client))
        except (hvac.exceptions.Forbidden, hvac.exceptions.Unauthorized):
            if self._token is token:
                self._token = None
            fresh = await self._living_token()
            answer = await self._in_thread(lambda: work(fresh.client))
        self._pause, self._last_problem = timedelta(0), ""
        return answer

    async def _living_token(self) -> _Token:
        token = self._token
        if token is not None and self._clock.monotonic() < token.renew_at:
            return token
        async with self._login:
            token, now = self._token, self._clock.monotonic()
            if token is not None and now < token.renew_at:
                return token
            if token is not None and token.renewable and now < token.ends_at:
                self._token = await self._renewed(token)
            if self._token is None or self._clock.monotonic() >= self._token.renew_at:
                self._token = await self._logged_in()
            return self._token

    async def _logged_in(self) -> _Token:
        access = self._access
        secret_id = await asyncio.to_thread(_read_secret_id, access.secret_id_file)
        client = hvac.Client(
            url=access.url,
            token="",  # nosec B106 - none yet: without this, one from the environment would be taken
            namespace=access.namespace,
            session=self._http,
            verify=self._http.verify,
            timeout=access.timeout.total_seconds(),
            allow_redirects=False,
        )
        asked_at = self._clock.monotonic()
        answer = await self._in_thread(
            lambda: client.auth.approle.login(
                role_id=access.role_id,
                secret_id=secret_id,
                use_token=False,
                mount_point=access.approle_mount,
            )
        )
        auth = _auth_of(answer)
        client.token = str(auth["client_token"])
        logger.info("logged in to the vault", seconds=auth["lease_duration"])
        return _token(client, auth, float(auth["lease_duration"]), asked_at)

    async def _renewed(self, token: _Token) -> _Token | None:
        asked_at = self._clock.monotonic()
        try:
            answer = await self._in_thread(token.client.auth.token.renew_self)
        except (hvac.exceptions.Forbidden, hvac.exceptions.InvalidRequest):
            return None
        auth = _auth_of(answer)
        if float(auth["lease_duration"]) < SHORTENED * token.life:
            return None
        return _token(token.client, auth, token.life, asked_at)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _unavailable(self, error: Exception) -> KeyUnavailableError:
        self._last_problem = _problem(error)
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), MAX_PAUSE)
        self._silent_until = self._clock.monotonic() + self._pause.total_seconds()
        logger.warning(
            "the vault does not serve", problem=self._last_problem, pause_s=self._pause.total_seconds()
        )
        return KeyUnavailableError(f"the vault does not serve: {self._last_problem}")


def _token(client: hvac.Client, auth: dict[str, Any], life: float, asked_at: float) -> _Token:
    left = float(auth["lease_duration"])
    if left <= 0:
        return _Token(client=client, life=0, renewable=False, renew_at=float("inf"), ends_at=float("inf"))
    return _Token(
        client=client,
        life=life,
        renewable=bool(auth["renewable"]),
        renew_at=asked_at + left * (1 - RENEW_BELOW),
        ends_at=asked_at + left,
    )


def _auth_of(answer: object) -> dict[str, Any]:
    auth = answer.get("auth") if isinstance(answer, dict) else None
    if not isinstance(auth, dict) or not {"client_token", "lease_duration", "renewable"} <= auth.keys():
        raise hvac.exceptions.UnexpectedError("the answer to a login is none")
    return auth


def _read_secret_id(path: Path) -> str:
    try:
        return read_secret_file(path, max_bytes=MAX_SECRET_ID_BYTES).decode("ascii").strip()
    except NotFoundError as error:
        raise KeyUnavailableError(f"the secret id of the vault is not there: {error}") from error
    except UnicodeDecodeError as error:
        raise KeyUnavailableError(f"{path} does not hold a secret id") from error


def _http(access: VaultAccess) -> requests.Session:
    if access.ca_file is not None:
        try:
            ssl.create_default_context(cafile=str(access.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"the vault's certificates {access.ca_file} cannot be used: {error}"
            ) from error
    session = requests.Session()
    # Nothing of the environment: neither a proxy nor ~/.netrc decides where keys are asked for.
    session.trust_env = False
    session.verify = True if access.ca_file is None else str(access.ca_file)
    adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=MAX_THREADS)
    session.mount(access.url, adapter)
    return session


_PROBLEMS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (hvac.exceptions.VaultDown, "it is sealed or not ready"),
    (hvac.exceptions.Forbidden, "it refuses: the role may not do this"),
    (hvac.exceptions.Unauthorized, "it refuses: the role may not do this"),
    (hvac.exceptions.InvalidRequest, "it refuses the login or the request as invalid"),
    (requests.exceptions.SSLError, "its certificate is not by the authority that is pinned"),
    (requests.exceptions.Timeout, "it does not answer in time"),
    (requests.RequestException, "it cannot be reached"),
)


def _problem(error: Exception) -> str:
    """What to tell about a failure: no path, no body, no token."""
    return next(
        (text for kind, text in _PROBLEMS if isinstance(error, kind)), f"it fails ({type(error).__name__})"
    )
