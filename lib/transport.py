# SPDX-License-Identifier: MIT-0
"""Send HTTP requests with an API key, and name connection errors.

The API key goes into the Authorization header and nowhere else. If a response repeats it in
its headers or in an error message, it is redacted here. An error of requests or urllib3
becomes an APIConnectionError that says what failed. The call ends by its deadline: see
total_timeout.py. Needs ``requests``, ``errors.py``, ``response.py`` and ``total_timeout.py``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import socket
import ssl
import traceback
import weakref
import zlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import urllib3
from requests.auth import AuthBase
from requests.utils import select_proxy

from .errors import APIConnectionError, APITimeoutError, error_from_response
from .response import FAILURES, Response
from .total_timeout import Deadline, TotalTimeoutAdapter

MAX_CONNECTIONS = 64  # kept open between calls; more threads than this still work
REDACTED = "[redacted]"
# Excludes what two parsers could read differently: one checks the URL, another one connects.
BASE_URL = re.compile(
    r"https?://([\w.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?(/[\w./~%+:@!$&'()*,;=-]*)?", re.IGNORECASE
)


class Transport:
    """Send requests to one base URL with one key. Thread-safe.

    After a fork, the child has connections of its own.

    A ``session`` of your own is used as it is. It is not closed, and not replaced after a
    fork. Unless you mount a TotalTimeoutAdapter on it, headers that arrive byte by byte are
    not limited by the total timeout, and an interim response (1xx) is an error.

    Raises ValueError for an invalid base URL, and for a key that an HTTP header cannot
    carry; the message never shows the key.
    """

    def __init__(self, api_key: str, base_url: str, session: requests.Session | None) -> None:
        self._key = _Key(api_key)
        self.base_url, self._host, on_this_machine = _check_base_url(base_url)
        # An empty proxy takes precedence over one in the environment.
        self._proxies = {"http": "", "https": "", "all": ""} if on_this_machine else {}
        self._owns_session = session is None
        self._session = _new_session() if session is None else session
        _instances.add(self)

    @contextlib.contextmanager
    def send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout: tuple[float, float],
        deadline: Deadline,
    ) -> Iterator[Response]:
        """Send a request and yield its 2xx response; raise a MistralError for anything else.

        ``timeout`` is (connect timeout, read timeout) in seconds. The whole call, which ends
        with the ``with`` block, ends by the deadline.
        """
        try:
            with deadline:
                raw = self._session.request(
                    method,
                    self.base_url + path,
                    data=body,
                    headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                    auth=self._key,  # requests lets ~/.netrc replace a header, but not this
                    timeout=(min(timeout[0], deadline.seconds), min(timeout[1], deadline.seconds)),
                    allow_redirects=False,
                    proxies=dict(self._proxies),  # a copy, since requests changes it
                    stream=True,
                )
            with raw:
                if raw.status_code < 200:  # unread, so that the response goes to no other caller
                    raise APIConnectionError(f"{self._host} sent an interim response (1xx)")
                response = Response(raw, deadline, self._key.redact)
                _instances.add(response)
                if not 200 <= raw.status_code <= 299:
                    text = response.error_text()
                    raise error_from_response(raw.status_code, response.headers, text)
                yield response
            return
        except FAILURES as error:
            failure = self._named(error, deadline)
            failure.__cause__ = self._key.without_traces(error)
        raise failure  # outside of the handler, whose variables may show the key

    def close(self) -> None:
        """Close the connections, unless you passed a session of your own."""
        if self._owns_session:
            self._session.close()

    def after_fork_in_child(self) -> None:
        """Open connections of the child's own: two processes on one would mix up responses."""
        if self._owns_session:
            self._session = _new_session()

    def _named(self, error: Exception, deadline: Deadline) -> APIConnectionError:
        """Return an error that names the root cause of an exception of requests or urllib3."""
        causes = _causes(error)
        settings = self._session.merge_environment_settings(
            self.base_url, dict(self._proxies), None, None, None
        )
        peer, verify = self._host, settings["verify"]
        if any(isinstance(cause, urllib3.exceptions.ProxyError) for cause in causes):
            peer = "the proxy"
        elif select_proxy(self.base_url, settings["proxies"]):
            peer += " (through a proxy)"
        if deadline.remaining() <= 0:
            return APITimeoutError(f"{peer} did not respond within {deadline}")
        for error_class, message, classes in NAMES:
            for cause in causes:
                if isinstance(cause, classes):
                    return error_class(message.format(peer=peer, cause=cause, verify=verify))
        # An OSError of no special class says itself what failed: a route, a proxy, a CA file.
        detail = next((str(each) for each in causes if type(each) is OSError), type(error).__name__)
        printable = "".join(filter(str.isprintable, detail))
        return APIConnectionError(f"the connection to {peer} failed ({printable:.200})")


_instances: weakref.WeakSet[Transport | Response] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for instance in list(_instances):
        instance.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _new_session() -> requests.Session:
    session, adapter = requests.Session(), TotalTimeoutAdapter(pool_maxsize=MAX_CONNECTIONS)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


class _Key(AuthBase):
    """The API key, for the Authorization header alone: no repr shows it, no pickle holds it."""

    def __init__(self, key: str) -> None:
        if not isinstance(key, str) or not key:
            raise ValueError("The API key is empty: set MISTRAL_API_KEY.")
        if not re.fullmatch("[!-~]+", key):
            raise ValueError(
                "The API key contains a space, a line break or a non-ASCII character, "
                "which no HTTP header can carry: copy it again."
            )
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        request.register_hook("response", _forget_redirect)  # type: ignore[no-untyped-call]
        return request

    def __reduce__(self) -> str:
        raise TypeError("cannot pickle a client: it holds the API key. Make one in each process.")

    def redact(self, text: str) -> str:
        """Return the text (plain, or JSON from ``json.dumps``) with the key redacted."""
        return text.replace(json.dumps(self._key)[1:-1], REDACTED).replace(self._key, REDACTED)

    def without_traces(self, error: Exception) -> Exception | None:
        """Return the error without what leads to the key, or None if its text shows the key.

        The variables of requests hold the key, and so does the request that failed.
        """
        error.__cause__ = error.__context__ = error.__traceback__ = None
        vars(error).update(request=None, response=None)
        text = "".join(traceback.format_exception_only(error))
        return None if self._key in text else error


def _forget_redirect(response: requests.Response, **_: object) -> None:
    """Drop the Location header.

    With it, requests reads a redirect's body and parses the target, although it must not follow.
    """
    response.headers.pop("Location", None)


def _check_base_url(url: str) -> tuple[str, str, bool]:
    """Return (URL without a trailing slash, host, whether it is this machine), or raise ValueError.

    The message does not show the URL: it may contain a password, or a key pasted by mistake.
    """
    try:
        parts = urlsplit(BASE_URL.fullmatch(url)[0])  # type: ignore[index]
        host, _ = parts.hostname or "", parts.port  # an invalid port raises ValueError
        host.encode("idna")
    except (TypeError, ValueError):
        raise ValueError(
            "The base URL must look like https://api.mistral.ai/v1: a valid host, "
            "and no user name, question mark or #."
        ) from None
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("The base URL must start with https://: http would expose the key.")
    return url.rstrip("/"), host, is_loopback(host)


def is_loopback(host: str) -> bool:
    """Return True if the host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# The first row with a class that is among the causes of a failure names it.
NAMES: tuple[tuple[type[APIConnectionError], str, tuple[type[Exception], ...]], ...] = (
    (APITimeoutError, "{peer} did not respond in time",
     (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)),
    (APIConnectionError, "the address of {peer} was not found", (socket.gaierror,)),
    (APIConnectionError, "{peer} refused the connection", (ConnectionRefusedError,)),
    (APIConnectionError, "no secure connection to {peer}: {cause.reason} (verify={verify})",
     (ssl.SSLError,)),
    (APIConnectionError, "{peer} sent a body that cannot be decompressed",
     (zlib.error, urllib3.exceptions.DecodeError)),
    (APIConnectionError, "{peer} closed the connection before the response was complete",
     (ConnectionError, urllib3.exceptions.ProtocolError, urllib3.exceptions.IncompleteRead)),
)  # fmt: skip


def _causes(error: BaseException) -> list[BaseException]:
    """Return the exception and all exceptions that it was raised from or wraps.

    ``__context__`` is not followed, because it may be an unrelated exception that the caller
    is handling. NewConnectionError is treated differently: in urllib3 1.26, it derives from a
    timeout, and only its context says what happened.
    """
    found = [error]
    for error in found:  # the list grows during the loop
        wrapped = [error.__cause__, getattr(error, "reason", None), *error.args]
        if isinstance(error, urllib3.exceptions.NewConnectionError):
            wrapped.append(error.__context__)
        found += [each for each in wrapped if isinstance(each, BaseException) and each not in found]
    return [each for each in found if not isinstance(each, urllib3.exceptions.NewConnectionError)]
