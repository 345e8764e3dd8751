"""errors.py: the tree, the table, and a readable message from whatever a server sends."""

from __future__ import annotations

import copy
import json
import math
import pickle
import time
from collections.abc import Iterator
from http import HTTPStatus
from itertools import chain

import pytest

from lib import errors
from lib.circuit_breaker import CircuitOpenError
from lib.errors import (
    ERROR_TABLE,
    MAX_MESSAGE_LENGTH,
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APIStreamBrokenError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ErrorInfo,
    InsufficientQuotaError,
    InternalServerError,
    MistralError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    UnprocessableEntityError,
    error_from_response,
    error_info,
    explain,
    is_retryable_status,
    parse_retry_after,
)
from support import WIRE_BODIES

PARENTS: dict[type[MistralError], type[MistralError]] = {
    APIConnectionError: MistralError,
    APITimeoutError: APIConnectionError,
    APIStreamBrokenError: APIConnectionError,
    APIResponseValidationError: MistralError,
    APIStatusError: MistralError,
    BadRequestError: APIStatusError,
    AuthenticationError: APIStatusError,
    PaymentRequiredError: APIStatusError,
    PermissionDeniedError: APIStatusError,
    NotFoundError: APIStatusError,
    UnprocessableEntityError: APIStatusError,
    RateLimitError: APIStatusError,
    RequestTimeoutError: APIStatusError,
    ConflictError: APIStatusError,
    InsufficientQuotaError: RateLimitError,
    InternalServerError: APIStatusError,
}
CLASSES: dict[int, type[APIStatusError]] = {
    408: RequestTimeoutError,
    409: ConflictError,
    400: BadRequestError,
    401: AuthenticationError,
    402: PaymentRequiredError,
    403: PermissionDeniedError,
    404: NotFoundError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    **dict.fromkeys(range(500, 600), InternalServerError),
}
RETRYABLE_STATUSES = {408, 409, 429, *range(500, 600)}
ROWS_OF_CLASSES = [row for row in ERROR_TABLE if row.status is None]

DATE = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT


def error_of(row: ErrorInfo) -> MistralError:
    """An error such as the row describes."""
    if row.error is APIStreamBrokenError:
        return APIStreamBrokenError("api.mistral.ai closed the connection", "Hel")
    if not issubclass(row.error, APIStatusError):
        return row.error("api.mistral.ai did not answer")
    fallback = 520 if row.error is InternalServerError else 418
    headers = {"x-ratelimit-limit-req-minute": "0"} if row.error is InsufficientQuotaError else {}
    return error_from_response(row.status or fallback, headers, '{"message": "No."}')


# The tree and the table


@pytest.mark.parametrize(("child", "parent"), PARENTS.items())
def test_the_tree_is_as_drawn(child: type[MistralError], parent: type[MistralError]) -> None:
    assert child.__base__ is parent
    assert f"─ {child.__name__} " in (errors.__doc__ or "")


def test_a_new_class_needs_a_place_in_the_tree_and_a_row_in_the_table() -> None:
    def below(cls: type[MistralError]) -> set[type[MistralError]]:
        ours = [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
        return set(chain(ours, *map(below, ours)))

    assert below(MistralError) == set(PARENTS)
    assert {row.error for row in ERROR_TABLE} == set(PARENTS)


def test_every_status_of_the_wire_has_a_row_of_its_own_or_that_of_its_family() -> None:
    listed = {row.status for row in ERROR_TABLE}
    assert {400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504} <= listed
    for status in {status for status, *_ in WIRE_BODIES} - listed:
        assert error_info(status) is error_info(599)


def test_no_status_and_no_class_has_two_rows() -> None:
    keys = [(row.status, row.error) for row in ERROR_TABLE]
    assert len(keys) == len(set(keys))


def test_each_status_has_its_class() -> None:
    for status in range(300, 600):
        assert type(error_from_response(status, {}, "")) is CLASSES.get(status, APIStatusError)
        assert error_info(status).error is CLASSES.get(status, APIStatusError)


def test_these_statuses_are_retryable_and_no_others() -> None:
    found = {status for status in range(300, 600) if error_from_response(status, {}, "").retryable}
    assert found == RETRYABLE_STATUSES
    assert {status for status in range(300, 600) if error_info(status).retryable} == found


@pytest.mark.parametrize("row", ERROR_TABLE, ids=lambda row: f"{row.error.__name__}-{row.status}")
def test_an_error_is_as_retryable_as_its_row_says(row: ErrorInfo) -> None:
    assert error_of(row).retryable is row.retryable


def test_no_connection_and_no_answer_in_time_are_retryable_and_a_half_read_answer_is_not() -> None:
    assert APIConnectionError("x").retryable
    assert APITimeoutError("x").retryable
    assert not APIStreamBrokenError("x", "Hel").retryable
    assert not APIResponseValidationError("x").retryable
    assert not MistralError("x").retryable


# Messages


@pytest.mark.parametrize(("status", "body", "message", "code"), WIRE_BODIES)
def test_every_body_seen_on_the_wire_gives_a_readable_message(
    status: int, body: str, message: str, code: str | None
) -> None:
    error = error_from_response(status, {}, body)
    assert (error.status_code, error.message, error.code) == (status, message, code)
    assert str(error) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}',
         "Incorrect API key"),
        ('{"error": {"message": ""}, "detail": "Not here"}', "Not here"),
        ('{"error": "Not found"}', "Not found"),
        ('{"message": null, "detail": "Too long"}', "Too long"),
        ('{"detail": ["first", "second"]}', "first; second"),
        ('{"detail": [{"loc": ["body", "messages", 0, "role"], "msg": "Field required"}, '
         '{"loc": ["body", "model"], "msg": "Not a string"}]}',
         "body.messages.0.role: Field required; body.model: Not a string"),
        ('{"detail": [{"msg": "Field required"}, {"loc": "body", "msg": "No"}, 5, null]}',
         "Field required; No"),
        ('[{"message": "One"}, {"message": "Two"}]', "One; Two"),
        ('"Just text"', "Just text"),
        ('{"message": "Zu viele Anfragen: später"}', "Zu viele Anfragen: später"),
    ],
)  # fmt: skip
def test_other_shapes_that_servers_use_give_their_text(body: str, message: str) -> None:
    assert error_from_response(400, {}, body).message == message


@pytest.mark.parametrize(
    "body",
    [
        "",
        " \r\n ",
        "<!DOCTYPE html><html><body>Bad Gateway</body></html>",
        "upstream connect error",
        '{"message": "cut o',
        "null",
        "true",
        "429",
        "[]",
        "{}",
        "[1, 2, [3]]",
        '{"message": 5}',
        '{"message": ""}',
        '{"message": "\\n\\t\\u0000 "}',
        '{"message": {"detail": [{"loc": ["body"]}]}}',
        '{"title": "No", "status": 502}',
        "[" * 100_000,
        '{"error":' * 100_000,
        "9" * 10_000,
        "\ufeff{}",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_a_body_that_says_nothing_gives_the_name_of_the_status(body: str) -> None:
    assert error_from_response(502, {}, body).message == "Bad Gateway"
    assert error_from_response(599, {}, body).message == "HTTP status 599"


def test_a_message_that_can_be_reached_is_found_however_deep_it_lies() -> None:
    deep = '{"error":' * 100 + '{"message": "Here"}' + "}" * 100
    assert error_from_response(400, {}, deep).message == "Here"


@pytest.mark.parametrize("depth", [500, 900, 2_000, 5_000])
def test_nesting_of_any_depth_ends_in_the_message_or_in_the_name_of_the_status(depth: int) -> None:
    deep = '{"error":' * depth + '{"message": "Here"}' + "}" * depth
    assert error_from_response(400, {}, deep).message in ("Here", "Bad Request")


def test_a_huge_message_is_cut() -> None:
    body = json.dumps({"message": "x" * 1_000_000, "code": "y" * 1_000_000})
    error = error_from_response(400, {"mistral-correlation-id": "z" * 1_000_000}, body)
    for text in (error.message, error.code, error.request_id):
        assert text is not None
        assert len(text) == MAX_MESSAGE_LENGTH
        assert text.endswith("...")


def test_a_message_just_short_enough_is_not_cut() -> None:
    text = "x" * MAX_MESSAGE_LENGTH
    assert error_from_response(400, {}, json.dumps({"message": text})).message == text


@pytest.mark.parametrize(
    "control",
    ["\n", "\r\n", "\t", "\0", "\x07", "\x1b[31m", "\x9b31m", "\x7f", "\u2028", "\u202e", "\ud800"],
    ids=ascii,
)
def test_nothing_that_moves_the_cursor_or_forges_a_line_gets_through(control: str) -> None:
    text = f"before{control}after"
    error = error_from_response(
        400, {}, json.dumps({"message": text, "code": text, "request_id": text})
    )
    for shown in (error.message, error.code, error.request_id, explain(error)):
        assert shown is not None
        assert shown.isprintable()
    assert error.message.startswith("before ")
    assert error.message.endswith("after")


# Code, request id, Retry-After


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('{"code": "1500"}', "1500"),
        ('{"code": 1500}', "1500"),
        ('{"error": {"code": "invalid_api_key"}, "code": "outer"}', "invalid_api_key"),
        ('{"error": "text", "code": "3505"}', "3505"),
        ('{"code": null}', None),
        ('{"code": {"a": 1}}', None),
        ('{"code": [1]}', None),
        ('["code"]', None),
        ("", None),
    ],
)
def test_the_code_is_text_or_none(body: str, code: str | None) -> None:
    assert error_from_response(400, {}, body).code == code


@pytest.mark.parametrize(
    ("headers", "body", "request_id"),
    [
        ({"mistral-correlation-id": "abc"}, "", "abc"),
        ({"mistral-correlation-id": "abc"}, '{"request_id": "def"}', "abc"),
        ({"mistral-correlation-id": " "}, '{"request_id": "def"}', "def"),
        ({}, '{"request_id": "def"}', "def"),
        ({}, '{"request_id": null}', None),
        ({}, "", None),
    ],
)
def test_the_request_id_comes_from_the_header_or_else_from_the_body(
    headers: dict[str, str], body: str, request_id: str | None
) -> None:
    assert error_from_response(500, headers, body).request_id == request_id


def test_retry_after_comes_from_its_header_and_is_none_without_one() -> None:
    assert error_from_response(429, {"Retry-After": "2.5"}, "").retry_after == 2.5
    assert error_from_response(503, {"Retry-After": "7"}, "").retry_after == 7.0
    assert error_from_response(429, {"Retry-After": "soon"}, "").retry_after is None
    assert error_from_response(429, {}, "").retry_after is None
    assert APIConnectionError("x").retry_after is None


# Errors travel between processes


@pytest.mark.parametrize("row", ERROR_TABLE, ids=lambda row: f"{row.error.__name__}-{row.status}")
def test_an_error_survives_pickle_and_copy(row: ErrorInfo) -> None:
    error = error_of(row)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))
        assert (twin.retryable, twin.retry_after) == (error.retryable, error.retry_after)


def test_a_status_error_keeps_all_that_it_knows_through_pickle() -> None:
    error = RateLimitError(429, "Slow down", "1300", "abc", 2.0)
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.status_code, twin.message, twin.code) == (429, "Slow down", "1300")
    assert (twin.request_id, twin.retry_after, twin.retryable) == ("abc", 2.0, True)


# parse_retry_after


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2", 2.0),
        ("2.5", 2.5),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("86400", 86400.0),  # whether to wait so long is not this function's to say
        ("Sun, 06 Nov 1994 08:49:37 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 10.0),
        ("Sun Nov  6 08:49:37 1994", 10.0),
        ("Sun, 06 Nov 1994 08:49:37", 10.0),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 10.0),
        ("Sun, 06 Nov 1994 09:49:37 +0100", 10.0),
        ("Sun, 06 Nov 1994 08:49:27 GMT", 0.0),
    ],
)
def test_seconds_and_http_dates_of_every_form_are_understood(value: str, seconds: float) -> None:
    assert parse_retry_after(value, now=DATE - 10) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "  ",
        "soon",
        "2 s",
        "2,5",
        "-1",
        "-0.5",
        "+5",
        "1_000",
        "0x10",
        "1e3",
        "1e400",
        "inf",
        "Infinity",
        "nan",
        "9" * 400,
        "9" * 10_000,
        "٢",
        "²",
        "Sun, 06 Nov 1994 08:49:26 GMT",
        "Sun, 06 Nov 1994 08:49:37 +0100",
        "Sun, 06 Nov 99999 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:61:61 GMT",
        "Sun, 06 Nov 1994 08:49:37 +9999",
        "Sun, 99 Nov 1994 08:49:37 GMT",
        "2030-01-01T00:00:00Z",
        "Sun,",
        "1 2 3",
        "\0",
        "a" * 10_000,
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_is_malformed_negative_endless_or_past_counts_as_absent(value: str | None) -> None:
    assert parse_retry_after(value, now=DATE - 10) is None


@pytest.fixture(params=["XXX+8", "XXX-9"])
def zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """A machine eight hours behind UTC, then one nine hours ahead of it."""
    set_zone = getattr(time, "tzset", lambda: None)  # Windows has none, nor heeds TZ
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        set_zone()
        yield
    set_zone()


@pytest.mark.usefixtures("zone")
def test_a_date_without_a_zone_is_utc_wherever_the_machine_stands() -> None:
    assert parse_retry_after("Sun Nov  6 08:49:37 1994", now=DATE - 10) == 10.0
    assert parse_retry_after("Sun, 06 Nov 1994 08:49:37", now=DATE - 10) == 10.0


def test_a_date_is_counted_from_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: DATE - 30)
    assert parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT") == 30.0


def test_the_last_date_that_there_is_stays_finite() -> None:
    seconds = parse_retry_after("Fri, 31 Dec 9999 23:59:59 GMT", now=DATE)
    assert seconds is not None
    assert 0 < seconds < math.inf


class TestPermanent429:
    """A limit of zero, or a used-up quota: waiting does not help."""

    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ({"x-ratelimit-limit-req-minute": "0"}, '{"message": "Rate limit exceeded"}'),
            ({}, '{"error": {"message": "Rate limit exceeded", "code": "insufficient_quota"}}'),
        ],
    )
    def test_it_is_not_retryable_and_says_what_to_do(
        self, headers: dict[str, str], body: str
    ) -> None:
        error = error_from_response(429, headers, body)
        assert isinstance(error, InsufficientQuotaError)
        assert isinstance(error, RateLimitError)
        assert not error.retryable
        assert str(error).startswith("Rate limit exceeded (your plan lacks this model")
        assert "choose another model or upgrade the plan" in explain(error)

    def test_an_ordinary_429_is_retryable(self) -> None:
        error = error_from_response(429, {"x-ratelimit-limit-req-minute": "60"}, "")
        assert type(error) is RateLimitError
        assert error.retryable


class TestUnknownModel:
    def test_the_400_of_the_real_api_is_caught_like_the_404_of_the_tutorial(self) -> None:
        real = error_from_response(400, {}, '{"message": "Invalid model: X", "code": "1500"}')
        assert type(real) is type(error_from_response(404, {}, "")) is NotFoundError
        assert real.status_code == 400
        assert explain(real).startswith("There is no such model or path (400, Invalid model: X)")


class TestRetryableStatus:
    @pytest.mark.parametrize(
        ("status", "expected"), [(400, False), (404, False), (408, True), (429, True), (503, True)]
    )
    def test_it_tells_for_the_errors_of_other_libraries(self, status: int, expected: bool) -> None:
        assert is_retryable_status(status) is expected


# explain


def test_explain_gives_the_seconds_and_the_cause_of_an_open_circuit() -> None:
    error = CircuitOpenError("api", 4.2, "InternalServerError: overloaded")
    assert explain(error) == (
        "Circuit breaker is open (after InternalServerError: overloaded): try again in 5 s."
    )


@pytest.mark.parametrize("row", ERROR_TABLE, ids=lambda row: f"{row.error.__name__}-{row.status}")
def test_explain_says_in_one_sentence_what_happened_and_what_to_do(row: ErrorInfo) -> None:
    error = error_of(row)
    sentence = explain(error)
    assert sentence.lower().startswith(row.meaning.lower())
    assert sentence[0].isupper()
    assert str(error) in sentence
    assert sentence.endswith(f": {row.what_to_do}.")
    assert ". " not in sentence.replace("No. (", "No (")
    assert "\n" not in sentence
    if isinstance(error, APIStatusError):
        assert f"({error.status_code}, " in sentence


def test_explain_tells_how_long_the_server_asks_to_wait() -> None:
    error = error_from_response(429, {"Retry-After": "2.5"}, "")
    assert "the server asks for 2.5 s" in explain(error)
    assert "asks for" not in explain(error_from_response(429, {}, ""))


def test_explain_takes_a_class_of_your_own_for_its_parent() -> None:
    class DNSError(APIConnectionError):
        pass

    class TeapotError(APIStatusError):
        pass

    assert explain(DNSError("x")) == explain(APIConnectionError("x"))
    assert explain(TeapotError(418, "short")) == explain(APIStatusError(418, "short"))


def test_explain_names_an_error_of_another_kind() -> None:
    assert explain(KeyError("model")) == "KeyError: 'model'"


def test_the_name_of_a_status_is_the_standards_own() -> None:
    for status in HTTPStatus:
        if status >= 300:
            assert error_from_response(status, {}, "").message == status.phrase
