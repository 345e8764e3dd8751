"""lib/errors.py: one tree, one table, and a readable message from whatever a server sends."""

from __future__ import annotations

import copy
import json
import pickle
import re
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest

from lib import errors
from lib.circuit_breaker import CircuitOpenError
from lib.errors import (
    ERROR_TABLE,
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APIStreamBrokenError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ContextLengthError,
    ErrorInfo,
    InsufficientQuotaError,
    InternalServerError,
    InvalidRequestError,
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
    read_retry_after,
)

STATUS_CLASSES: dict[int, type[APIStatusError]] = {
    400: BadRequestError, 401: AuthenticationError, 402: PaymentRequiredError,
    403: PermissionDeniedError, 404: NotFoundError, 408: RequestTimeoutError, 409: ConflictError,
    413: APIStatusError, 422: UnprocessableEntityError, 429: RateLimitError,
    500: InternalServerError, 502: InternalServerError, 503: InternalServerError,
    504: InternalServerError,
}  # fmt: skip

# What the real API sends with an error: status, body, the message in it, its code.
WIRE_BODIES: list[tuple[int, str, str, str | None]] = [
    (400, '{"object":"error","message":"Invalid model: X","type":"invalid_model","param":null,'
     '"code":"1500","raw_status_code":400}', "Invalid model: X", "1500"),
    (400, '{"object":"error","message":"Prompt contains 159202 tokens and 0 draft tokens, too '
     'large for model with 131072 maximum context length",'
     '"type":"invalid_request_invalid_args","param":null,"code":"3051","raw_status_code":400}',
     "Prompt contains 159202 tokens and 0 draft tokens, too large for model with 131072 "
     "maximum context length", "3051"),
    (401, '{"detail":"Invalid API Key"}', "Invalid API Key", None),
    (401, '{"message":"Unauthorized","request_id":"abc-123"}', "Unauthorized", None),
    (402, '{"object":"error","message":"API budget exhausted.",'
     '"type":"billing_api_budget_exhausted","param":null,"code":"2303","raw_status_code":402}',
     "API budget exhausted.", "2303"),
    (422, '{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body",'
     '"max_completion_tokens"],"msg":"Extra inputs are not permitted","input":32000}]},'
     '"type":"invalid_request_error","param":null,"code":null}',
     "body.max_completion_tokens: Extra inputs are not permitted", None),
    (422, '{"detail":[{"type":"extra_forbidden","loc":["body","store"],"msg":"Extra inputs are not '
     'permitted"}]}', "body.store: Extra inputs are not permitted", None),
    (429, '{"object":"error","message":"Rate limit exceeded","type":"rate_limited","param":null,'
     '"code":"1300","raw_status_code":429}', "Rate limit exceeded", "1300"),
    (500, '{"object":"error","message":"Service unavailable.","type":"internal_server_error",'
     '"param":null,"code":"1000"}', "Service unavailable.", "1000"),
    (503, '{"object":"error","message":"Internal server error","type":"unreachable_backend",'
     '"param":null,"code":"1100"}', "Internal server error", "1100"),
    (504, "", "Gateway Timeout", None),
    (520, "<html><body><h1>Web server error</h1></body></html>", "HTTP status 520", None),
]  # fmt: skip


def our_subclasses(error: type[MistralError]) -> list[type[MistralError]]:
    return [cls for cls in error.__subclasses__() if cls.__module__ == errors.__name__]


def drawing(error: type[MistralError], indent: str = " ") -> Iterator[str]:
    """Yield the lines that draw what is below a class: names, statuses and meanings."""
    below = our_subclasses(error)
    for subclass in below:
        last = subclass is below[-1]
        status = f"{subclass.status}: " if subclass.status else ""
        name = f"{indent}{'└' if last else '├'}── {subclass.__name__}"
        yield f"{name:38} {status}{subclass.meaning}"
        yield from drawing(subclass, indent + ("     " if last else "│    "))


class TestTree:
    def test_the_drawing_shows_the_classes(self) -> None:
        tree = "\n".join(["MistralError", *drawing(MistralError)])
        assert f"\n\n{tree}\n\n" in (errors.__doc__ or ""), tree

    def test_retryable_without_a_status(self) -> None:
        assert APIConnectionError("x").retryable
        assert APITimeoutError("x").retryable
        assert not APIStreamBrokenError("x", "Hel").retryable
        assert not APIResponseValidationError("x").retryable
        assert not InvalidRequestError("x").retryable
        assert not MistralError("x").retryable

    def test_invalid_request_is_a_value_error_and_not_an_api_error(self) -> None:
        assert issubclass(InvalidRequestError, ValueError)
        assert not issubclass(InvalidRequestError, MistralError)

    def test_the_response_had_begun_where_its_content_was_wrong(self) -> None:
        """For a circuit breaker, which looks at the status before ``retryable``."""
        assert APIResponseValidationError("x").status_code == 200
        assert APIStreamBrokenError("x", "Hel").status_code == 200

    def test_pickle_and_copy(self) -> None:
        """Errors travel between processes with all that they know."""
        full = RateLimitError(429, "Slow down", "1300", "abc", 2.0)
        broken = APIStreamBrokenError("disconnected", "Hel")
        assert (str(broken), broken.partial_text) == ("disconnected", "Hel")
        for error in (full, InsufficientQuotaError(429, "No"), broken, APITimeoutError("too late")):
            for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
                assert type(twin) is type(error)
                assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))


class TestErrorTable:
    def test_every_class_has_one_row_for_each_of_its_statuses(self) -> None:
        named = set(re.findall(r"─ (\w+)", errors.__doc__ or ""))
        assert {row.error.__name__ for row in ERROR_TABLE} == named
        assert len({(row.status, row.error) for row in ERROR_TABLE}) == len(ERROR_TABLE)

    def test_rows_are_sorted_by_status_and_those_without_come_last(self) -> None:
        statuses = [row.status or 1000 for row in ERROR_TABLE]
        assert statuses == sorted(statuses)

    def test_an_error_says_what_its_row_says(self) -> None:
        for row in ERROR_TABLE:
            error = error_of(row)
            assert row.meaning
            assert row.what_to_do
            assert (error.meaning, error.what_to_do) == (row.meaning, row.what_to_do)
            assert error.retryable is row.retryable

    def test_row_and_class_of_a_status(self) -> None:
        """A status without a row gets the row of its family: 5xx, or any other."""
        assert {row.status for row in ERROR_TABLE} == {*STATUS_CLASSES, None}
        for status in range(300, 701):
            family = InternalServerError if 500 <= status <= 599 else APIStatusError
            expected = STATUS_CLASSES.get(status, family)
            info = error_info(status)
            assert info.status == (status if status in STATUS_CLASSES else None), status
            assert info.error is type(error_from_response(status, {}, "")) is expected, status

    def test_retryable_statuses(self) -> None:
        for status in range(300, 701):
            expected = status in {408, 409, 429, *range(500, 600)}
            assert is_retryable_status(status) is expected, status
            assert error_from_response(status, {}, "").retryable is expected, status


def message(body: str, status: int = 400) -> str:
    return error_from_response(status, {}, body).message


class TestMessage:
    def test_bodies_of_the_real_api(self) -> None:
        for status, body, text, code in WIRE_BODIES:
            error = error_from_response(status, {}, body)
            assert (error.status_code, error.message, error.code) == (status, text, code)
            assert str(error) == text

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ('{"error": {"message": "Incorrect API key"}}', "Incorrect API key"),
            ('{"error": {"message": ""}, "detail": "Not here"}', "Not here"),
            ('{"error": "Not found"}', "Not found"),
            ('{"message": null, "detail": "Too long"}', "Too long"),
            ('{"detail": ["first", "second"]}', "first; second"),
            ('{"detail": [{"loc": ["messages", 0, "role"], "msg": "Required"}, '
             '{"loc": ["model"], "msg": "No"}]}', "messages.0.role: Required; model: No"),
            ('{"detail": [{"msg": "Required"}, {"loc": "body", "msg": "No"}, 5]}', "Required; No"),
            ('[{"message": "One"}, {"message": "Two"}]', "One; Two"),
            ('[{"error": {"code": 400, "message": "No key", "status": "INVALID_ARGUMENT"}}]',
             "No key"),
            ('{"success": false, "errors": [{"code": 7003, "message": "No route"}]}', "No route"),
            ('{"errors": ["One", "Two"]}', "One; Two"),
            ('{"error": ["Invalid input"]}', "Invalid input"),
            ('{"error": "invalid_token", "error_description": "It expired"}', "It expired"),
            ('{"type": "about:blank", "title": "Slow down", "status": 429}', "Slow down"),
            ('{"title": "Slow down", "detail": "Ten a minute", "status": 429}', "Ten a minute"),
            ('{"fault": {"faultstring": "Quota violation", "detail": {"errorcode": "q"}}}',
             "Quota violation"),
            ('{"Message": "Forbidden"}', "Forbidden"),
            ('\ufeff{"message": "After a BOM"}', "After a BOM"),
            ('"später"', "später"),
            ("upstream connect error or disconnect/reset before headers", "upstream connect error "
             "or disconnect/reset before headers"),
            ("404 page not found\n", "404 page not found"),
            ("\ufeffToo Many Requests", "Too Many Requests"),
            ('{"error":' * 100 + '{"message": "deep"}' + "}" * 100, "deep"),
        ],
        ids=lambda text: text[:30],
    )  # fmt: skip
    def test_bodies_of_other_servers(self, body: str, text: str) -> None:
        assert message(body) == text

    def test_a_body_that_says_nothing_gives_the_phrase_of_the_status(self) -> None:
        for body in (
            "", " \r\n ", "<html><body>Oh no</body></html>", '<?xml version="1.0"?><Error/>',
            '{"message": "trunc', '[{"message"', "null", "429", "\ufeff", "\ufffd\ufffd\0", "---",
            "[1, [2]]", '{"message": 5}', '{"message": "\\n\\t\\u0000 "}',
            '{"message": {"detail": [{"loc": ["body"]}]}}', '{"error":' * 100_000, "9" * 10_000,
        ):  # fmt: skip
            assert message(body, 502) == "Bad Gateway", body[:50]
            assert message(body, 599) == "HTTP status 599", body[:50]
        for status in HTTPStatus:
            if status >= 300:
                assert message("", status) == status.phrase

    def test_nesting_of_any_depth_is_not_an_error(self) -> None:
        for depth in (500, 900, 2_000, 5_000):
            deep = '{"error":' * depth + '{"message": "deep"}' + "}" * depth
            assert message(deep) in ("deep", "Bad Request")

    def test_long_texts_are_cut(self) -> None:
        body = json.dumps({"message": "x" * 1_000_000, "code": "y" * 501})
        error = error_from_response(400, {"mistral-correlation-id": "z" * 501}, body)
        assert error.message == "x" * 497 + "..."
        assert error.code == "y" * 497 + "..."
        assert error.request_id == "z" * 497 + "..."
        assert message(json.dumps({"message": "x" * 500})) == "x" * 500
        assert message("x" * 1_000_000) == "x" * 497 + "..."

    def test_an_endless_body_is_not_read_to_its_end(self) -> None:
        """Its values could take thirty times the memory of their text."""
        assert message('{"message": "No"' + " " * 1_000_000 + "}") == "No"
        assert message('{"message": "No"' + " " * 1_100_000 + "}") == "Bad Request"

    def test_control_characters_are_removed(self) -> None:
        """A server must not move the cursor, or forge a line of a log."""
        for control in "\r\n", "\t", "\0", "\x1b", "\x9b", "\x7f", "\u2028", "\u202e", "\ud800":
            text = f"before{control}after"
            body = json.dumps({"message": text, "code": text, "request_id": text})
            error = error_from_response(400, {}, body)
            for shown in (error.message, error.code, error.request_id):
                assert shown == "before after", ascii(control)


class TestCodeAndRequestId:
    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ('{"code": 1500}', "1500"),
            ('{"error": {"code": "invalid_api_key"}, "code": "outer"}', "invalid_api_key"),
            ('{"error": "text", "code": "3505"}', "3505"),
            ('{"error": {"code": null}, "code": "outer"}', "outer"),
            ('[{"error": {"code": "first"}}, {"error": {"code": "second"}}]', "first"),
            ('{"errors": [{"code": 7003}]}', "7003"),
            ('{"code": {"a": 1}}', None),
            ('{"code": ""}', None),
            ('["code"]', None),
        ],
    )
    def test_the_code_is_text_or_none(self, body: str, code: str | None) -> None:
        assert error_from_response(400, {}, body).code == code

    def test_the_request_id_comes_from_the_header_or_else_from_the_body(self) -> None:
        for in_header, request_id in (("abc", "abc"), (" ", "def"), ("", "def")):
            headers = {"mistral-correlation-id": in_header}
            error = error_from_response(500, headers, '{"request_id": "def"}')
            assert error.request_id == request_id
        assert error_from_response(500, {}, "").request_id is None


DATE = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"Retry-After": "2.5"}, 2.5),
            ({"Retry-After": "soon"}, None),
            ({"retry-after-ms": "1500", "Retry-After": "60"}, 1.5),
            ({"retry-after-ms": "0", "Retry-After": "60"}, 0.0),
            ({"retry-after-ms": "soon", "Retry-After": "60"}, 60.0),
            ({"retry-after-ms": "-1"}, None),
            ({}, None),
        ],
        ids=str,
    )
    def test_the_headers_of_an_error(self, headers: dict[str, str], seconds: float | None) -> None:
        """Milliseconds are more exact, so they win."""
        assert read_retry_after(headers) == seconds
        assert error_from_response(429, headers, "").retry_after == seconds

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("2", 2.0),
            ("2.5", 2.5),
            ("0", 0.0),
            (" 7 ", 7.0),
            ("86400", 86400.0),  # whether to wait that long is the caller's decision
            ("Sun, 06 Nov 1994 08:49:37 GMT", 10.0),
            ("Sunday, 06-Nov-94 08:49:37 GMT", 10.0),
            ("Sun Nov  6 08:49:37 1994", 10.0),
            ("Sun, 06 Nov 1994 09:49:37 +0100", 10.0),
            ("Sun, 06 Nov 1994 08:49:27 GMT", 0.0),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 252618189032.0),  # the last date there is
        ],
    )
    def test_seconds_and_dates(self, value: str, seconds: float) -> None:
        assert parse_retry_after(value, now=DATE - 10) == seconds

    def test_malformed_negative_infinite_and_past_values_count_as_absent(self) -> None:
        for value in (
            None, "", "soon", "2 s", "2,5", "-1", "+5", "1_000", "0x10", "1e3", "inf", "nan",
            "9" * 400, "٢", "Sun, 06 Nov 1994 08:49:26 GMT", "Sun, 06 Nov 99999 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 +9999", "Sun, 99 Nov 1994 08:49:37 GMT",
            "2030-01-01T00:00:00Z", "Sun,", "1 2 3", "\0",
        ):  # fmt: skip
            assert parse_retry_after(value, now=DATE - 10) is None, value

    @pytest.mark.skipif(not hasattr(time, "tzset"), reason="Windows does not heed TZ")
    @pytest.mark.parametrize("zone", ["XXX+8", "XXX-9"])
    def test_a_date_without_a_zone_is_utc_on_every_machine(self, zone: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            seconds = parse_retry_after("Sun, 06 Nov 1994 08:49:37", now=DATE - 10)
        time.tzset()
        assert seconds == 10.0

    def test_a_date_is_counted_from_now(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "time", lambda: DATE - 30)
        assert parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT") == 30.0


QUOTA = "insufficient_quota"


class TestPermanent429:
    """A limit of zero, or a used-up quota: waiting does not help."""

    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ({"x-ratelimit-limit-req-minute": "0"}, {"message": "No"}),
            ({"x-ratelimit-limit-tokens-minute": "0"}, {"message": "No"}),
            ({}, {"error": {"message": "No", "code": QUOTA}}),
            ({}, {"error": {"message": "No", "type": QUOTA, "code": None}}),
            ({}, {"message": "No", "type": QUOTA}),
            ({}, {"error": {"message": "No"}, "code": QUOTA}),
            ({}, {"error": {"message": "No", "type": QUOTA, "code": 429}}),
        ],
        ids=str,
    )
    def test_it_is_not_retryable_and_says_what_to_do(
        self, headers: dict[str, str], body: dict[str, Any]
    ) -> None:
        error = error_from_response(429, headers, json.dumps(body))
        assert type(error) is InsufficientQuotaError
        assert isinstance(error, RateLimitError)
        assert not error.retryable
        assert str(error) == "No (your plan lacks this model, or its quota is used up)"
        assert "choose another model or upgrade the plan" in explain(error)

    def test_other_responses_stay_retryable(self) -> None:
        for status, limit in ((429, "60"), (503, "0")):
            error = error_from_response(status, {"x-ratelimit-limit-req-minute": limit}, "")
            assert type(error) is STATUS_CLASSES[status]
            assert error.retryable


class TestContextLength:
    """The prompt does not fit into this model. It may fit into another."""

    @pytest.mark.parametrize(
        "body",
        [
            {"message": "Prompt too large", "code": "3051"},
            {"message": "Prompt too large", "code": 3051},
            {"error": {"message": "Prompt too large", "code": "context_length_exceeded"}},
            {"error": {"message": "Prompt too large", "type": "exceed_context_size_error",
                       "code": 400}},
        ],
        ids=str,
    )  # fmt: skip
    def test_it_is_a_400_that_a_fallback_to_another_model_may_cure(
        self, body: dict[str, Any]
    ) -> None:
        error = error_from_response(400, {}, json.dumps(body))
        assert type(error) is ContextLengthError
        assert isinstance(error, BadRequestError)
        assert not error.retryable
        assert error.another_model_may_help

    def test_an_unknown_model_is_a_404_for_the_tutorial_and_a_400_for_the_real_api(self) -> None:
        real = error_from_response(400, {}, '{"message": "Invalid model: X", "code": "1500"}')
        assert (type(real), real.status_code) == (NotFoundError, 400)

    def test_only_these_two_say_so(self) -> None:
        """A wrong key and a wrong field are wrong for every model."""
        helped = {row.error for row in ERROR_TABLE if row.error.another_model_may_help}
        assert helped == {ContextLengthError, NotFoundError}


class TestCodeInTheBody:
    @pytest.mark.parametrize(
        "body",
        [
            {"error": {"message": "Slow down", "code": 429}},
            {"error": {"message": "Slow down", "code": "429"}},
            {"error": {"message": "Slow down", "http_status_code": 429}},
            {"object": "error", "message": "Slow down", "code": "1300", "raw_status_code": 429},
            {"title": "Slow down", "status": 429},
            [{"error": {"message": "Slow down", "code": 429, "status": "RESOURCE_EXHAUSTED"}}],
            {"statusCode": 500, "error": {"message": "Slow down", "code": 429}},
        ],
        ids=str,
    )
    def test_a_status_in_it_chooses_the_class(self, body: Any) -> None:
        """A gateway may answer 500 where the server behind it sent a 429."""
        error = error_from_response(500, {}, json.dumps(body))
        assert type(error) is RateLimitError
        assert (error.status_code, error.message) == (429, "Slow down")

    def test_other_codes_leave_the_class_to_the_response(self) -> None:
        for code in (399, 600, "1300", "4290", "-429", "429.0", 429.0, True, None):
            error = error_from_response(403, {}, json.dumps({"error": {"code": code}}))
            assert type(error) is PermissionDeniedError, code
        for code in (400, 599):
            assert error_from_response(500, {}, json.dumps({"code": code})).status_code == code

    def test_a_code_that_is_known_explains_a_500(self) -> None:
        for code, error_class in (
            ("context_length_exceeded", ContextLengthError),
            ("insufficient_quota", InsufficientQuotaError),
            ("1500", NotFoundError),
        ):
            error = error_from_response(500, {}, json.dumps({"error": {"code": code}}))
            assert (type(error), error.status_code) == (error_class, error_class.status)

    def test_a_code_that_is_known_contradicts_no_other_status(self) -> None:
        for status, code in ((422, "1500"), (503, "insufficient_quota"), (429, "3051")):
            error = error_from_response(status, {}, json.dumps({"code": code}))
            assert type(error) is STATUS_CLASSES[status], code


class TestExplain:
    """One sentence for a person: what happened, and what to do about it."""

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (InternalServerError(503, "Busy"), "The service is unavailable or overloaded "
             "(503, Busy): retry with exponential backoff, or fall back."),
            (NotFoundError(400, "Invalid model: X"), "There is no such model or path "
             "(400, Invalid model: X): check the model's name and MISTRAL_BASE_URL."),
            (RateLimitError(429, "Slow down", retry_after=2.5), "Too many requests or tokens, or "
             "no capacity left (429, Slow down; the server asks for 2.5 s): "
             "wait, then send fewer requests per minute."),
            (CircuitOpenError("api", 4.2, "InternalServerError: Busy"), "Circuit breaker is open "
             "(after InternalServerError: Busy): try again in 5 s."),
            (CircuitOpenError("api", 0.0, "InternalServerError: Busy"), "Circuit breaker is open "
             "(after InternalServerError: Busy): a probe is under way, try again soon."),
            (NotFoundError(404, "404 page not found"), "There is no such model or path "
             "(404 page not found): check the model's name and MISTRAL_BASE_URL."),
            (APITimeoutError("api did not respond in time"), "The call took too long "
             "(api did not respond in time): retry, allow more time or ask for a shorter answer."),
            (InsufficientQuotaError(429, "No."), "Your plan lacks this model, or its quota is used "
             "up (429, No): choose another model or upgrade the plan; waiting does not help."),
            (KeyError("model"), "KeyError: 'model'"),
            (MistralError("odd"), "MistralError: odd"),
        ],
        ids=lambda case: type(case).__name__ if isinstance(case, Exception) else "",
    )  # fmt: skip
    def test_the_sentence(self, error: Exception, sentence: str) -> None:
        assert explain(error) == sentence

    def test_every_row_explains_its_own_errors(self) -> None:
        for row in ERROR_TABLE:
            sentence = explain(error_of(row))
            assert sentence.lower().startswith(f"{row.meaning} (".lower())
            assert sentence.endswith(f"): {row.what_to_do}.")

    def test_no_clause_stands_twice(self) -> None:
        real = [error_from_response(status, {}, body) for status, body, _, _ in WIRE_BODIES]
        for error in [*map(error_of, ERROR_TABLE), *real]:
            clauses = [each.strip(" .)").lower() for each in re.split("[(;:,]", explain(error))]
            assert len(clauses) == len(set(clauses)), explain(error)

    def test_an_exception_of_your_own_takes_part(self) -> None:
        error = Exception("12 calls")
        vars(error).update(meaning="the team has no credit left", what_to_do="ask for more")
        assert explain(error) == "The team has no credit left (12 calls): ask for more."


def error_of(row: ErrorInfo) -> MistralError:
    if row.error is APIStreamBrokenError:
        return APIStreamBrokenError("disconnected", "Hel")
    if issubclass(row.error, APIStatusError):
        return row.error(row.status or 599, "No")
    return row.error("No")
