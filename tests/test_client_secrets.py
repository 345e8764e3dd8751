"""client.py: the key goes to the API and nowhere else, and is shown to nobody."""

from __future__ import annotations

import json
import logging
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from lib.client import MistralClient
from lib.errors import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    MistralError,
    RateLimitError,
    explain,
)
from lib.mock_server import MockServer
from support import RawServer, completion, raw_response

KEY = "sk-0123456789-secret"
HELLO = [{"role": "user", "content": "Hello!"}]
PROXY_SETTINGS = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(params=["own session", "caller's session"])
def session(request: pytest.FixtureRequest) -> Iterator[requests.Session | None]:
    """The client must be as careful with a session that it was given."""
    if request.param == "own session":
        yield None
    else:
        with requests.Session() as session:
            yield session


@pytest.fixture
def dead_url() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def no_proxy_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_SETTINGS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def shown(error: BaseException) -> str:
    """All that a log, a console or a debugger's first look could show of an error."""
    whole = "".join(traceback.format_exception(error))
    return "\n".join([str(error), repr(error), repr(vars(error)), explain(error), whole])


def failure(
    base_url: str,
    *,
    key: str = KEY,
    timeout: float = 5.0,
    session: requests.Session | None = None,
) -> MistralError:
    """The error that one call ends in."""
    with MistralClient(key, base_url=base_url, timeout=timeout, session=session) as client:
        with pytest.raises(MistralError) as caught:
            client.chat(HELLO)
        return caught.value


def authorization(request: bytes) -> list[bytes]:
    lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    return [line for line in lines if line.lower().startswith(b"authorization:")]


# Where the key goes


def test_a_netrc_does_not_replace_the_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session: requests.Session | None
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with RawServer(raw_response("503 Oops")) as server:
        failure(server.url, session=session)
    assert authorization(server.requests[0]) == [f"Authorization: Bearer {KEY}".encode()]


def test_credentials_of_a_session_do_not_replace_the_key() -> None:
    with RawServer(raw_response("503 Oops")) as server, requests.Session() as session:
        session.auth = ("somebody", "else")
        session.headers["Authorization"] = "Bearer another"
        failure(server.url, session=session)
    assert authorization(server.requests[0]) == [f"Authorization: Bearer {KEY}".encode()]


@pytest.mark.usefixtures("no_proxy_settings")
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_in_the_environment_does_not_capture_loopback_calls(
    monkeypatch: pytest.MonkeyPatch, dead_url: str, name: str, session: requests.Session | None
) -> None:
    monkeypatch.setenv(name, dead_url)
    with RawServer(raw_response("429 Slow down")) as server:
        assert isinstance(failure(server.url, session=session), RateLimitError)


@pytest.mark.usefixtures("no_proxy_settings")
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
def test_nor_does_it_capture_loopback_calls_over_tls(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with RawServer(b"no TLS") as server, RawServer(b"no proxy") as proxy:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        error = failure(server.url.replace("http:", "https:"), timeout=0.1)
        assert isinstance(error, APIConnectionError)
        assert proxy.connections == 0


@pytest.mark.usefixtures("no_proxy_settings")
def test_a_proxy_of_a_session_does_not_capture_loopback_calls(dead_url: str) -> None:
    with RawServer(raw_response("429 Slow down")) as server, requests.Session() as session:
        session.proxies = {"http": dead_url, "all": dead_url}
        assert isinstance(failure(server.url, session=session), RateLimitError)


@pytest.mark.usefixtures("no_proxy_settings")
def test_a_proxy_for_other_hosts_is_used_and_does_not_see_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with RawServer(raw_response("407 Who are you?")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        error = failure("https://no-such-host.invalid/v1")
    assert isinstance(error, APIConnectionError)
    assert proxy.requests[0].startswith(b"CONNECT no-such-host.invalid:443 HTTP/1")
    assert KEY.encode() not in b"".join(proxy.requests)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_does_not_follow_a_redirect(status: int, session: requests.Session | None) -> None:
    """Not even to another port of the same host, where the path is the right one."""
    with RawServer(raw_response("200 OK", b"{}")) as other:
        location = f"Location: {other.url}/chat/completions"
        with RawServer(raw_response(f"{status} Moved", b"", location)) as server:
            assert isinstance(failure(server.url, session=session), APIStatusError)
        assert other.connections == 0


# Keys and base URLs that are refused


@pytest.mark.parametrize(
    "key",
    ["sk-hidden\n", "\nsk-hidden", "sk-hid den", " sk-hidden", "sk-hidden\r\nX-Evil: 1",
     "sk-hidden\t", "sk-hidden\0", "sk-hidden\x7f", "sk-hidden-é", "sk-hidden-ключ",
     "sk-hidden\u2028", "“sk-hidden”"],
    ids=ascii,
)  # fmt: skip
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        MistralClient(key)
    assert "hid" not in shown(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["", None, 5, b"sk-hidden"])
def test_a_key_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        MistralClient(key)
    assert "hid" not in shown(caught.value)


def test_a_key_of_any_printable_ascii_arrives_as_it_is() -> None:
    key = "".join(map(chr, range(33, 127)))
    with RawServer(raw_response("503 Oops")) as server:
        failure(server.url, key=key)
    assert authorization(server.requests[0]) == [f"Authorization: Bearer {key}".encode()]


@pytest.mark.parametrize(
    "host",
    ["api.mistral.ai", "localhost.example.com", "127.0.0.1.example.com", "localhost.", "0.0.0.0",
     "10.0.0.1", "192.168.1.1", "[::2]", "[::]", "128.0.0.1", "127.1", "１２７.0.0.1",
     "127.0.0.1%2f.example.com", "127.0.0.1\\.example.com"],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "HTTP"])
def test_the_key_goes_over_plain_http_to_no_other_machine(scheme: str, host: str) -> None:
    with pytest.raises(ValueError, match="https://"):
        MistralClient(KEY, base_url=f"{scheme}://{host}/v1")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8080/v1", "http://127.9.9.9/v1", "http://localhost/v1", "HTTP://LOCALHOST",
     "http://[::1]:8080/v1", "https://api.mistral.ai/v1", "HTTPS://API.MISTRAL.AI/v1",
     "https://10.0.0.1:8443", "https://[2001:db8::1]/v1", "https://müller.example/v1"],
)  # fmt: skip
def test_loopback_and_every_https_host_are_fine(url: str) -> None:
    MistralClient(KEY, base_url=url).close()


@pytest.mark.parametrize(
    "url",
    [
        "https://somebody:hidden@api.mistral.ai/v1",
        "https://hidden@api.mistral.ai/v1",
        "https://:hidden@api.mistral.ai/v1",
        "https://somebody:hid/den@api.mistral.ai/v1",
        "https://somebody:hid#den@api.mistral.ai/v1",
        "https://somebody:hid\u2100den@api.mistral.ai/v1",
        "https://somebody:hid[den@api.mistral.ai/v1",
        "http://127.0.0.1@hidden.example.com/v1",
        "http://127.0.0.1\\@hidden.example.com/v1",
        "http://127.0.0.1#@hidden.example.com/v1",
        "https://api.mistral.ai/v1?key=hidden",
        "https://api.mistral.ai/v1?",
        "https://api.mistral.ai/v1#hidden",
        "https://api.mistral.ai/v1#",
        "https://api.mistral.ai:hidden/v1",
        "https://api.mistral.ai:99999/v1",
        "https://api.mistral.ai:-1/v1",
        "https://hidden..mistral.ai/v1",
        "https://hidden\u2100.example.com/v1",
        "https://[::1/v1",
        f"https://{'hidden' * 11}.example.com/v1",
        "https://api.mistral.ai/v1 hidden",
        "https://api.mistral.ai/v1\nhidden",
        " https://api.mistral.ai/v1/hidden",
        "https://\thidden.example.com/v1",
        "https:///v1/hidden",
        "https://",
        "https:/hidden/v1",
        "https:hidden",
        "//hidden/v1",
        "api.mistral.ai/v1/hidden",
        "hidden",
        "",
        "ftp://hidden.example.com/v1",
        "file:///etc/hidden",
        "unix:///hidden.sock",
        "javascript:hidden",
    ],
    ids=ascii,
)
def test_a_base_url_that_cannot_be_right_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"^The base URL must ") as caught:
        MistralClient(KEY, base_url=url)
    assert "hid" not in shown(caught.value), "it may be a password, or a key in the wrong place"
    assert "\n" not in str(caught.value)


# The key is in nothing that anybody prints


def test_the_client_shows_its_base_url_and_not_its_key() -> None:
    with MistralClient(KEY, base_url="https://api.mistral.ai/v1/") as client:
        assert repr(client) == "MistralClient(base_url='https://api.mistral.ai/v1')"
        assert KEY not in f"{client} {vars(client)} {client.__dict__.values()}"


GOOD = json.dumps(completion("Hi"))
ECHOES = {
    "message": raw_response("401 No", f'{{"message": "Bad key {KEY}"}}'.encode()),
    "detail": raw_response("401 No", f'{{"detail": "{KEY}"}}'.encode()),
    "fields": raw_response(
        "422 No", f'{{"detail": [{{"loc": ["{KEY}"], "msg": "{KEY}"}}]}}'.encode()
    ),
    "wrapped": raw_response("401 No", f'{{"error": {{"message": "{KEY}{KEY}"}}}}'.encode()),
    "escaped": raw_response("401 No", f'{{"message": "\\u0073{KEY[1:]}"}}'.encode()),
    "far out": raw_response("401 No", f'{{"message": "{"x" * 490}{KEY}"}}'.encode()),
    "code": raw_response("401 No", f'{{"message": "No", "code": "{KEY}"}}'.encode()),
    "code wrapped": raw_response("401 No", f'{{"error": {{"code": "{KEY}"}}}}'.encode()),
    "request id": raw_response("401 No", f'{{"request_id": "{KEY}"}}'.encode()),
    "id header": raw_response("401 No", b"", f"mistral-correlation-id: {KEY}"),
    "other headers": raw_response("429 No", b"", f"Retry-After: {KEY}", f"WWW-Authenticate: {KEY}"),
    "cookie": raw_response("401 No", b"", f"Set-Cookie: key={KEY}"),
    "reason": raw_response(f"401 {KEY}"),
    "text": raw_response("401 No", f"Authorization: Bearer {KEY}".encode()),
    "page": raw_response("502 No", f"<html>{KEY}</html>".encode()),
    "redirect": raw_response("302 No", b"", f"Location: http://127.0.0.1/?{KEY}"),
    "bad redirect": raw_response("302 No", b"", f"Location: http://[{KEY}"),
    "200 no JSON": raw_response("200 OK", f"Bearer {KEY}".encode()),
    "200 cut": raw_response("200 OK", f'{{"message": "{KEY}'.encode()),
    "200 JSON": raw_response("200 OK", f'{{"{KEY}": "{KEY}"}}'.encode()),
    "200 content": raw_response("200 OK", GOOD.replace('"Hi"', f'{{"{KEY}": 1}}').encode()),
    "200 usage": raw_response("200 OK", GOOD.replace(": 36", f': "{KEY}"').encode()),
    "status line": f"{KEY}\r\n\r\n".encode(),
    "status": f"HTTP/1.1 {KEY} OK\r\n\r\n".encode(),
    "chunk": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n".encode(),
    "lengths": raw_response("200 OK", b"", f"Content-Length: {KEY}"),
    "encoding": raw_response("200 OK", b"x", f"Content-Encoding: gzip, {KEY}"),
    "half": f"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{KEY}".encode(),
}


@pytest.mark.parametrize("answer", ECHOES.values(), ids=ECHOES.keys())
def test_a_server_that_echoes_the_key_does_not_get_it_shown(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), RawServer(answer) as server:
        error = failure(server.url)
    assert KEY.encode() in server.requests[0]
    assert KEY not in shown(error)
    assert KEY not in caplog.text


@pytest.mark.parametrize("spelling", [KEY, "".join(f"\\u{ord(char):04x}" for char in KEY)])
def test_a_redacted_key_leaves_the_rest_readable(spelling: str) -> None:
    body = f'{{"message": "Key {spelling} is unknown", "code": "bad-{KEY}", "request_id": "{KEY}"}}'
    with RawServer(raw_response("401 Unauthorized", body.encode())) as server:
        error = failure(server.url)
    assert isinstance(error, AuthenticationError)
    assert error.message == "Key [redacted] is unknown"
    assert (error.code, error.request_id) == ("bad-[redacted]", "[redacted]")


@pytest.mark.parametrize(
    "fault", ["401", "429:1", "500", "html:502", "drop", "timeout", "badjson", "cut"]
)
def test_no_failure_shows_the_key(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), MockServer(fault) as server:
        error = failure(server.url, timeout=0.1 if fault == "timeout" else 5)
    assert KEY not in shown(error)
    assert KEY not in caplog.text


def test_no_failure_to_connect_shows_the_key(dead_url: str) -> None:
    for url in (dead_url, "https://no-such-host.invalid/v1"):
        assert KEY not in shown(failure(url))


def test_no_refused_request_shows_the_key(session: requests.Session | None) -> None:
    with MistralClient(KEY, session=session) as client:
        with pytest.raises(ValueError, match="messages") as wrong_messages:
            client.chat([])
        with pytest.raises(ValueError, match="JSON") as wrong_parameter:
            client.chat(HELLO, temperature=float("nan"))
    assert KEY not in shown(wrong_messages.value) + shown(wrong_parameter.value)
