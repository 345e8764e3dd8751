"""lib/sdk_errors.py: other libraries' errors, rebuilt here by shape; `make bench-sdks` has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import requests

from lib.circuit_breaker import is_service_failure
from lib.errors import APIStreamBrokenError, APITimeoutError, is_retryable_status, parse_retry_after
from lib.rate_limiter import RateLimitTimeoutError
from lib.retry import is_retryable
from lib.sdk_errors import mark, marked

Facts = tuple[Any, Any, Any]


def facts(error: BaseException) -> Facts:
    """Return what the helpers look at; "-" stands for what the error does not have."""
    return tuple(getattr(error, name, "-") for name in ("retryable", "retry_after", "status_code"))  # type: ignore[return-value]


def an_error(*class_names: str, **attributes: Any) -> Exception:
    """Return an error whose class has this name, and the other names as its bases."""
    cls: type[Exception] = Exception
    for name in reversed(class_names or ("SomeError",)):
        cls = type(name, (cls,), {})
    error = cls("No.")
    vars(error).update(attributes)
    return error


def response(status: int, text: str = "", **headers: str) -> Any:
    """Return the response of requests or httpx; ``retry_after="2"`` is its Retry-After."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return SimpleNamespace(status_code=status, text=text, headers=MappingProxyType(named))


def requests_error(status: int) -> requests.HTTPError:
    """Return the real thing: a response with an error status is false in a condition."""
    sent = requests.Response()
    sent.status_code, sent.headers["Retry-After"] = status, "2"
    return requests.HTTPError(response=sent)


def raised_from(cause: BaseException, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


class TestStatus:
    """Each library keeps the status elsewhere."""

    @pytest.mark.parametrize(
        "error",
        [
            an_error("HTTPStatusError", response=response(503, retry_after="2")),
            an_error("ClientResponseError", status=503, headers={"Retry-After": "2"}),
            an_error("SDKError", status_code=503, headers={"retry-after": "2"}),
            an_error("APIStatusError", status_code=503, response=response(503, retry_after="2")),
            an_error("ServiceUnavailableError", status_code=503, response=response(503),
                     litellm_response_headers={"retry-after": "2"}),
            an_error("ModelHTTPError", status_code=503, retry_after=2.0),
            requests_error(503),
            raised_from(
                raised_from(requests_error(503), an_error()), an_error("InstructorRetryException")
            ),
        ],
        ids=["httpx", "aiohttp", "mistralai", "openai", "litellm", "pydantic-ai", "requests",
             "instructor"],
    )  # fmt: skip
    def test_place(self, error: Exception) -> None:
        assert facts(mark(error)) == (True, 2, 503)

    def test_which_are_retryable(self) -> None:
        """They are those of the client's own errors."""
        for status in range(300, 600):
            assert is_retryable(mark(an_error(status=status))) is is_retryable_status(status)

    def test_no_status(self) -> None:
        for value in ("error", "503", True, 42, 1000, None, [503]):
            assert facts(mark(an_error(status=value))) == ("-", "-", "-"), value

    def test_server_knows_better(self) -> None:
        for status, advice, expected in ((400, "true", True), (503, "false", False),
                                         (503, "maybe", True)):  # fmt: skip
            error = an_error(response=response(status, x_should_retry=advice))
            assert facts(mark(error)) == (expected, None, status)

    def test_error_before_its_cause(self) -> None:
        error = raised_from(requests_error(503), an_error(status_code=400))
        assert facts(mark(error)) == (False, None, 400)


class TestNoResponse:
    """A timeout or a lost connection is known by the name of its class, or of a base."""

    def test_class(self) -> None:
        for error in (
            TimeoutError(), asyncio.TimeoutError(), ConnectionResetError(),
            requests.ConnectTimeout(), requests.ConnectionError(),
            requests.exceptions.ChunkedEncodingError(),
            *map(an_error, (
                "NewConnectionError", "MaxRetryError", "ClientPayloadError", "APITimeoutError",
                "ModelConnectionError", "ModelTimeoutError",
            )),
            an_error("IncompleteRead", "ProtocolError"),
            an_error("ReadTimeout", "TimeoutException", "TransportError"),
            an_error("ServerDisconnectedError", "ClientConnectionError"),
            an_error("OpenAIConnectionError", "APIConnectionError"),
            raised_from(an_error("APITimeoutError"), an_error("ModelAPIError")),
        ):  # fmt: skip
            assert facts(mark(error)) == (True, None, None), type(error)

    @pytest.mark.parametrize(("name", "status"), [("Timeout", 408), ("APIConnectionError", 500)])
    def test_invented_status(self, name: str, status: int) -> None:
        """litellm gives a timeout a 408, which would not count against the service."""
        error = mark(an_error(name, status_code=status))
        assert facts(error) == (True, None, None)
        assert is_service_failure(error)
        assert facts(mark(error)) == (True, None, None), "marked twice"

    def test_a_wrong_url_is_not_sent(self) -> None:
        for error in (
            requests.exceptions.InvalidURL(),
            requests.exceptions.MissingSchema(),
            requests.exceptions.InvalidSchema(),
            an_error("LocationParseError", "LocationValueError"),
            an_error("UnsupportedProtocol", "TransportError"),
        ):
            assert facts(mark(error)) == (False, None, None), type(error)
            assert not is_service_failure(error)


class TestRetryAfter:
    def test_same_as_in_the_client(self) -> None:
        for text in (
            "0", "2", " 0.5 ", "86400", "-1", "inf", "nan", "soon", "", "1e3", "9" * 400,
            "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2065 07:28:00 GMT",
            "Wed, 21 Oct 2065 07:28:00", "Wed, 21 Oct 2065 07:28:00 +0200",
            "Wed, 21 Oct 99999 07:28:00 GMT",
        ):  # fmt: skip
            found = facts(mark(an_error(response=response(503, retry_after=text))))[1]
            assert found == pytest.approx(parse_retry_after(text), abs=1), text

    def test_milliseconds_win(self) -> None:
        for milliseconds, seconds in (("250", 0.25), ("0", 0), ("soon", 9), ("-1", 9)):
            error = an_error(response=response(503, retry_after="9", retry_after_ms=milliseconds))
            assert facts(mark(error))[1] == seconds


class TestQuota:
    """A 429 that waiting cannot cure is not retryable."""

    @pytest.mark.parametrize(
        "attributes",
        [
            {"body": {"type": "tokens", "code": "insufficient_quota"}},
            {"body": {"error": {"code": "insufficient_quota"}}},
            {"body": '{"error": {"type": "insufficient_quota"}}'},
            {"message": "Error code: 429 - {'error': {'type': 'insufficient_quota'}}"},
            {"response": response(429, '{"code":"insufficient_quota"}')},
            {"response": response(429, x_ratelimit_limit_req_minute="0")},
            {"response": response(429, x_ratelimit_limit_tokens_minute="0")},
        ],
        ids=str,
    )
    def test_used_up(self, attributes: dict[str, Any]) -> None:
        assert facts(mark(an_error(status_code=429, **attributes))) == (False, None, 429)

    def test_left(self) -> None:
        some_left = response(429, x_ratelimit_limit_req_minute="60")
        for attributes in (
            {},
            {"message": "Don't write insufficient_quota into your prompt."},
            {"body": {"code": "1300"}, "response": some_left},
        ):
            assert facts(mark(an_error(status_code=429, **attributes))) == (True, None, 429)

    def test_server_s_advice_does_not_count(self) -> None:
        server_says = response(429, '{"code":"insufficient_quota"}', x_should_retry="true")
        error = an_error(response=server_says)
        assert facts(mark(error)) == (False, None, 429)


class TestGroup:
    """An exception group is what its members are."""

    @pytest.mark.parametrize(
        ("members", "expected"),
        [
            ([TimeoutError(), requests_error(503)], (True, 2, 503)),
            ([an_error(status=400), requests_error(503)], (False, 2, 503)),
            ([ValueError(), requests_error(503)], (False, 2, 503)),
            ([requests_error(503), "no error", None], (False, 2, 503)),
            ([an_error(exceptions=(TimeoutError(),))], (True, None, None)),
            ([an_error(status=500, headers={"Retry-After": "1"}), requests_error(503)],
             (True, 2, 503)),
        ],
    )  # fmt: skip
    def test_members(self, members: list[Any], expected: Facts) -> None:
        assert facts(mark(an_error("ExceptionGroup", exceptions=tuple(members)))) == expected
        assert facts(members[0])[0] == "-", "the members are left as they are"

    def test_no_members(self) -> None:
        for exceptions in ((), "none", None, SimpleNamespace()):
            error = an_error(status=503, exceptions=exceptions)
            assert facts(mark(error)) == (True, None, 503)
            caused = an_error(exceptions=exceptions)
            caused.__cause__ = an_error(status=503)
            assert facts(mark(caused)) == (True, None, 503)


class TestMark:
    def test_unknown_errors_are_left_alone(self) -> None:
        for error in (ValueError(), FileNotFoundError(), KeyError("status")):
            assert mark(error) is error
            assert facts(error) == ("-", "-", "-")

    def test_what_is_known_is_kept(self) -> None:
        for error in (
            RateLimitTimeoutError("no slot"),
            APITimeoutError("too late"),
            APIStreamBrokenError("broke off", "Hel"),
            an_error(retryable=True, status_code=400),
            an_error(retryable=False, retry_after=1, status_code=503, headers={"Retry-After": "2"}),
        ):
            before = facts(error)
            for known, marked_as in zip(before, facts(mark(error)), strict=True):
                assert known in (marked_as, "-", None), error

    def test_what_is_missing_is_added(self) -> None:
        error = an_error(retryable=False, response=response(503, retry_after="2"))
        assert facts(mark(error)) == (False, 2, 503)

    def test_unhelpful_error(self) -> None:
        """Marking raises nothing: the caller needs to see the error itself."""

        class UnhelpfulError(Exception):
            status = 503

            def fail(self, *value: object) -> Any:
                raise RuntimeError("not now")

            response = retryable = property(fail)
            __setattr__ = __str__ = __repr__ = fail

        error = UnhelpfulError()
        assert mark(error) is error
        assert facts(mark(an_error(status=429, body=error))) == (True, None, 429)

    def test_attribute_that_cannot_be_set(self) -> None:
        class ReadOnlyError(Exception):
            status = 503
            retry_after = property(lambda self: None)

        assert facts(mark(ReadOnlyError())) == (True, None, 503)

    def test_cycle(self) -> None:
        error = an_error()
        error.__cause__ = error
        assert facts(mark(error)) == ("-", "-", "-")
        vars(error)["exceptions"] = (error, error)
        assert facts(mark(error)) == (False, None, None)

    def test_unreadable_headers(self) -> None:
        assert facts(mark(an_error(status=503, headers="none"))) == (True, None, 503)


class TestMarked:
    def test_error_that_leaves_the_block(self) -> None:
        error = an_error(status=503)
        with pytest.raises(type(error)) as raised, marked():
            raise error
        assert raised.value is error
        assert facts(error) == (True, None, 503)

    def test_ctrl_c_is_left_alone(self) -> None:
        interrupt: Callable[[], Any] = KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt) as raised, marked():
            raise raised_from(TimeoutError(), interrupt())
        assert facts(raised.value) == ("-", "-", "-")
