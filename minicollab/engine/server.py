"""Asking an HTTP server that may be busy, slow, broken or about to be started again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, TypeVar

from minicollab import recipe
from minicollab.errors import ModelError

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds
_LONGEST_WAIT = 60.0  # seconds, if the server asks for it
_CONNECT = 10.0  # seconds
_PASSING = {408, 409, 425, 429}  # and 5xx


class Refusal(ModelError):
    """The server has understood, and will not."""


class _Failure(Exception):
    """One that may be over when asked again. `wait`: what the server asks for, in seconds."""

    def __init__(self, reason: str, remedy: str = "Look at what the server logs", wait: float | None = None):
        super().__init__(reason)
        self.reason, self.remedy, self.wait = reason, remedy, wait


class Server:
    """One address, asked with patience and bounded concurrency, in any number of event loops
    after another."""

    def __init__(self, url: str, options: recipe.Remote):
        self.url, self._options = url, options
        self._jitter = random.Random(url)
        self._asking = 0

    async def ask(self, path: str, asked: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """What `read` finds in the JSON that the server answers to POST `asked`.

        Asked again after a pause that doubles, or as long as the server says, if there is no
        answer, a passing HTTP status, or one that is no JSON or not what `read` can use (it
        raises the like of KeyError). Raises ModelError if that does not help or cannot.
        """
        body = json.dumps(asked).encode()
        tries = self._options.retries + 1
        async with self._connected() as (client, slots):
            for attempt in range(tries):
                try:
                    async with slots:
                        return _readable(await self._post(client, path, body), read)
                except _Failure as error:
                    failure = error
                if attempt + 1 < tries:
                    await asyncio.sleep(self._pause(attempt, failure.wait))
        raise ModelError(
            f"{self.url} gave no answer after {tries} {'tries' if tries > 1 else 'try'}: {failure.reason}",
            f"{failure.remedy}, then run the same command again; what was answered is in the cache.",
        )

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Any, asyncio.Semaphore]]:
        """A client that lives as long as anybody asks: it must not outlive its event loop."""
        import httpx

        if not self._asking:
            self._slots = asyncio.Semaphore(self._options.concurrency)
            self._client = httpx.AsyncClient(
                headers=self._headers,
                verify=self._tls,
                timeout=httpx.Timeout(None, connect=_CONNECT),
                trust_env=False,  # a proxy of the environment would catch 127.0.0.1, too
            )
        client = self._client
        self._asking += 1
        try:
            yield client, self._slots
        finally:
            self._asking -= 1
            if not self._asking:
                await client.aclose()

    @property
    def _headers(self) -> dict[str, str]:
        key = self._key
        if not (key.isascii() and key.isprintable()):
            raise ModelError(f"{self._options.key_env} holds what is no API key", "Set it again.")
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    @property
    def _key(self) -> str:
        return os.environ.get(self._options.key_env, "").strip()

    @cached_property
    def _tls(self) -> Any:
        import httpx

        return self.url.startswith("https") and httpx.create_ssl_context()

    async def _post(self, client: Any, path: str, body: bytes) -> Any:
        """The JSON that came back. Raises _Failure or ModelError."""
        import httpx

        try:
            async with asyncio.timeout(self._options.timeout):
                response = await client.post(self.url + path, content=body)
        except TimeoutError:
            raise _Failure(
                f"nothing came within {self._options.timeout:g} s",
                "Raise remote.timeout or lower remote.concurrency",
            ) from None
        except httpx.RequestError as error:
            raise _Failure(_cause(error), "Start the server") from None
        try:
            answer = response.json()
        except ValueError:
            if response.is_success:
                raise _Failure("a body that is not JSON") from None
            answer = response.text
        if response.is_success:
            return answer
        self._raise(response.status_code, self._complaint(answer), response.headers.get("Retry-After", ""))

    def _raise(self, status: int, said: str, retry_after: str) -> None:
        if status in _PASSING or (status >= 500 and status != 501):
            wait = min(float(retry_after), _LONGEST_WAIT) if retry_after.isdecimal() else None
            remedy = "Lower remote.concurrency" if status == 429 else "Look at what the server logs"
            raise _Failure(f"HTTP {status}{said}", remedy, wait)
        remedy = (
            "Turn off in the recipe what this server does not know (min_p, top_k …), or shorten the talk."
        )
        if status in (401, 403):
            remedy = f"Put the server's API key into the environment variable {self._options.key_env}."
        elif status == 404 or status < 400:
            remedy = "Check the address (it mostly ends in /v1) and the model's name after the #."
        raise Refusal(f"{self.url} refuses: HTTP {status}{said}", remedy)

    def _complaint(self, answer: Any) -> str:
        """ ": " and the server's own words, in one line; "" if it has none."""
        for key in ("error", "detail", "message"):
            if isinstance(answer, dict) and answer.get(key):
                answer = answer[key]
        said = answer if isinstance(answer, str) else json.dumps(answer)
        said = " ".join(said.split())[:200]
        # A key that is quoted back must not end up in a log.
        return f": {said.replace(self._key, '***') if self._key else said}" if said else ""

    def _pause(self, attempt: int, wait: float | None) -> float:
        """Seconds: as the server wishes, else doubling, and spread so that not all come at once."""
        doubled = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
        return wait if wait is not None else doubled * self._jitter.uniform(0.75, 1.25)


def _readable(answer: Any, read: Callable[[Any], T]) -> T:
    try:
        return read(answer)
    except (LookupError, TypeError, ValueError, AttributeError):
        excerpt = " ".join(json.dumps(answer, ensure_ascii=False).split())[:200]
        raise _Failure(f"an answer that is none: {excerpt}") from None


def _cause(error: BaseException) -> str:
    """What the operating system said, which httpx wraps two or three times; else what httpx says."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        if isinstance(inner, OSError) and inner.errno and inner.strerror:
            # asyncio puts an address there instead; TLS and name look-up have numbers of their own.
            own = isinstance(inner, ssl.SSLError | socket.gaierror)
            return (inner.strerror if own else os.strerror(inner.errno)).lower()
        inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__
