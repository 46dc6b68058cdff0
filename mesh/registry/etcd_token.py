"""The token that etcd wants with each call when its authentication is on.

Owns the password's file, the authenticating and how often it is tried. A token is forgotten when etcd says that it is
too old or unknown (a member that restarted knows none): the next call makes a new one, and reads the password again.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final

import grpc

from mesh.api.gen.etcd import rpc_pb2 as rpc
from mesh.api.service import unary
from mesh.core.errors import Code, RegistryMisconfigured, RegistryRefused, RegistryUnavailable
from mesh.registry.config import RegistryConfig
from mesh.registry.etcd_errors import Verdict, error_of, facts_of, row_of

PATH: Final = "/etcdserverpb.Auth/Authenticate"
FIRST_PAUSE_S: Final = 0.5
LAST_PAUSE_S: Final = 8.0
"""First and longest time in which a refused password is not shown again: etcd spends 0.1 s of CPU to look at one, and
every activity of every process asks. Another password is shown at once."""

Metadata = tuple[tuple[str, str], ...]


class Token:
    """The token of one client, made when it is wanted: by one call for all that wait."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._value: str | None = None
        """Empty: etcd's authentication is off."""
        self._lock = asyncio.Lock()
        self._refused = ""
        self._password = ""
        self._until_s = 0.0
        self._pause_s = FIRST_PAUSE_S

    def __repr__(self) -> str:
        """Show where it stands; never the token."""
        return f"<Token user={self._config.user!r} known={self._value is not None} refused={bool(self._refused)}>"

    @property
    def wanted(self) -> bool:
        """Whether there is a user to authenticate."""
        return bool(self._config.user)

    def forget(self, used: Metadata = ()) -> None:
        """Make a new token for the next call, if the present one is the one that was `used`."""
        if not used or used == _metadata(self._value or ""):
            self._value = None

    async def metadata(self, channel: Any, timeout_s: float) -> Metadata:
        """Return what a call sends along; on `channel` a token is made where none is known.

        Raises TimeoutError or AioRpcError when this member does not answer (another one may), `RegistryRefused` for a
        wrong password and `RegistryUnavailable` when the password's file cannot be read now.
        """
        if not self._config.user:
            return ()
        async with asyncio.timeout(timeout_s), self._lock:
            if self._value is None:
                self._value = await self._authenticate(channel, timeout_s)
            return _metadata(self._value)

    async def _authenticate(self, channel: Any, timeout_s: float) -> str:
        password = await asyncio.to_thread(password_of, self._config)
        if self._refused and password == self._password and time.monotonic() < self._until_s:
            raise RegistryRefused(self._refused, facts=facts_of(self._refused))
        request = rpc.AuthenticateRequest(name=self._config.user, password=password)
        method = unary(channel, PATH, rpc.AuthenticateRequest, rpc.AuthenticateResponse)
        try:
            response = await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            row = row_of(Code(error.code().value[0]), error.details() or "")
            if row.verdict is Verdict.OPEN:
                return ""
            if row.verdict is Verdict.ELSEWHERE:
                raise
            if row.verdict is not Verdict.REFUSED:
                raise error_of(row.code, error.details() or "") from error
            self._refused = f"etcd did not take user {self._config.user!r}: {error.details()}; {row.advice}"
            again = self._pause_s if password == self._password else FIRST_PAUSE_S
            self._password, self._until_s = password, time.monotonic() + again
            self._pause_s = min(LAST_PAUSE_S, 2 * again)
            raise RegistryRefused(self._refused, facts=facts_of(self._refused)) from error
        self._refused, self._password, self._pause_s = "", "", FIRST_PAUSE_S
        return str(response.token)


def password_of(config: RegistryConfig) -> str:
    """Return the password as it is now. Blocks. Raises `RegistryUnavailable` when its file cannot be read."""
    if not config.password_file:
        return config.password
    try:
        found = Path(config.password_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryUnavailable(
            f"expected the password of the registry's user {config.user!r} in {config.password_file}: {error}; "
            "it is read again",
            facts=facts_of("no password"),
        ) from error
    if not found:
        raise RegistryUnavailable(
            f"expected the password of the registry's user {config.user!r} in {config.password_file}, it is empty; "
            "it is read again",
            facts=facts_of("no password"),
        )
    return found


def check(config: RegistryConfig) -> None:
    """Say at a process's start what no waiting mends. Blocks. Raises `RegistryMisconfigured`."""
    try:
        if config.user:
            password_of(config)
    except RegistryUnavailable as error:
        raise RegistryMisconfigured(error.message.removesuffix("; it is read again")) from error


def _metadata(token: str) -> Metadata:
    return (("token", token),) if token else ()
