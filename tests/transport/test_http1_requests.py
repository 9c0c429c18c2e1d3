"""Requests are read as RFC 9112 says, however the bytes are cut, and never otherwise than h11 reads them."""

from collections.abc import Iterable

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellstream.transport.http1_requests import (
    BODY_BYTES_MAX,
    HEADERS_MAX,
    TARGET_BYTES_MAX,
    Request,
    RequestReader,
    RequestRefused,
)

HEAD_BYTES_MAX = 16_384


def read(pieces: Iterable[bytes]) -> list[Request | int]:
    """Every request that the bytes hold; of one that is refused the status, as the last."""
    reader = RequestReader(HEAD_BYTES_MAX)
    found: list[Request | int] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (request := reader.next_request()) is not None:
                found.append(request)
    except RequestRefused as refused:
        found.append(refused.status)
    return found


def head(*lines: str) -> bytes:
    """A request's head."""
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def get(*headers: str, target: str = "/", version: str = "1.1") -> bytes:
    """A GET with a Host and these headers."""
    return head(f"GET {target} HTTP/{version}", "Host: here", *headers)


READ = {
    "origin form, 9112 §3.2.1": (get(target="/a/b?c=d?e"), ("GET", "/a/b", "c=d?e", True)),
    "absolute form, 9112 §3.2.2": (get(target="http://host:1/a?b"), ("GET", "/a", "b", True)),
    "absolute form without a path": (get(target="HTTP://host?b"), ("GET", "/", "b", True)),
    "asterisk form, 9112 §3.2.4": (head("OPTIONS * HTTP/1.1", "Host: a"), ("OPTIONS", "*", "", True)),
    "HTTP/1.0 ends": (head("GET / HTTP/1.0"), ("GET", "/", "", False)),
    "HTTP/1.0 that asks to stay": (get("Connection: Keep-Alive", version="1.0"), ("GET", "/", "", True)),
    "a later minor is 1.1, 9110 §2.5": (get(version="1.7"), ("GET", "/", "", True)),
    "close among options, 9112 §9.6": (get("Connection: te, Close"), ("GET", "/", "", False)),
    "empty lines before it, 9112 §2.2": (b"\r\n\r\n" + get(), ("GET", "/", "", True)),
    "space around a value, 9112 §5": (get("A: \t b \t"), ("GET", "/", "", True)),
    "methods are case-sensitive, 9110 §9.1": (head("get / HTTP/1.1", "Host: a"), ("get", "/", "", True)),
    "an empty Host, 9112 §3.2": (head("GET / HTTP/1.1", "Host:"), ("GET", "/", "", True)),
    "a chunked body is not read, so it is the last": (
        get("Transfer-Encoding: chunked"),
        ("GET", "/", "", False),
    ),
    "nor one that waits for 100": (get("Expect: 100-continue", "Content-Length: 9"), ("GET", "/", "", False)),
}

REFUSED = {
    "no version, 9112 §3": (head("GET /"), 400),
    "two spaces": (head("GET  / HTTP/1.1", "Host: a"), 400),
    "a space in the target": (head("GET /a b HTTP/1.1", "Host: a"), 400),
    "a control character in the target": (head("GET /\x00 HTTP/1.1", "Host: a"), 400),
    "no ASCII in the target": (head("GET /\xe9 HTTP/1.1", "Host: a"), 400),
    "a target that is no path": (get(target="a"), 400),
    "another scheme": (get(target="ftp://a/"), 400),
    "a fragment": (get(target="/#a"), 400),
    "a method that is no token": (head("G(T / HTTP/1.1", "Host: a"), 400),
    "lower-case HTTP, 9112 §2.3": (head("GET / http/1.1", "Host: a"), 400),
    "HTTP/2's preface, 9110 §15.6.6": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/0.9": (get(version="0.9"), 505),
    "no Host, 9112 §3.2": (head("GET / HTTP/1.1"), 400),
    "two Hosts": (get("Host: here"), 400),
    "a Host that is none": (head("GET / HTTP/1.1", "Host: a b"), 400),
    "a bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "a bare CR, 9112 §2.2": (get("A: b\rc"), 400),
    "a NUL in a value, 9110 §5.5": (get("A: b\0"), 400),
    "a space before the colon, 9112 §5.1": (get("A : b"), 400),
    "a folded line, 9112 §5.2": (get("A: b", " c"), 400),
    "a space before the first header, 9112 §2.2": (head("GET / HTTP/1.1", " Host: a"), 400),
    "a header without a colon": (get("A"), 400),
    "a header without a name": (get(": a"), 400),
    "two lengths, 9112 §6.3": (get("Content-Length: 1", "Content-Length: 2"), 400),
    "a length that is no number": (get("Content-Length: -1"), 400),
    "a length with a sign": (get("Content-Length: +1"), 400),
    "a list of lengths": (get("Content-Length: 1, 1"), 400),
    "digits that are not ASCII": (get("Content-Length: \xb2"), 400),
    "no length": (get("Content-Length:"), 400),
    "both framings, 9112 §6.1": (get("Content-Length: 1", "Transfer-Encoding: chunked"), 400),
    "a coding in HTTP/1.0, 9112 §6.1": (get("Transfer-Encoding: chunked", version="1.0"), 400),
    "an unknown coding, 9112 §6.1": (get("Transfer-Encoding: gzip, chunked"), 501),
    "a large body, 9110 §15.5.14": (get(f"Content-Length: {BODY_BYTES_MAX + 1}"), 413),
    "a body beyond all numbers": (get(f"Content-Length: {'9' * 5000}"), 413),
    "a long target, 9112 §3": (get(target="/" + "a" * TARGET_BYTES_MAX), 414),
    "a long target without an end": (b"GET /" + b"a" * TARGET_BYTES_MAX, 414),
    "many headers, 6585 §5": (get(*["A: b"] * HEADERS_MAX), 431),
    "a long header": (get("A: " + "b" * HEAD_BYTES_MAX), 431),
    "a header that never ends": (b"GET / HTTP/1.1\r\nA: " + b"b" * HEAD_BYTES_MAX, 431),
    "empty lines without an end": (b"\r\n" * HEAD_BYTES_MAX, 431),
}


def cuts(data: bytes) -> Iterable[list[bytes]]:
    """The same bytes at once, one at a time, and in pieces of seven."""
    for size in (len(data), 1, 7):
        yield [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("name", READ)
def test_what_the_rfc_allows_is_read(name: str) -> None:
    """However it is cut; and what follows it is read from its beginning."""
    data, (method, path, query, keep_alive) = READ[name]
    for pieces in cuts(data):
        (request,) = read(pieces)
        assert isinstance(request, Request)
        assert (request.method, request.path, request.query) == (method, path, query)
        assert request.keep_alive is keep_alive


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused(name: str) -> None:
    """With the status that the RFC names, and without waiting for more."""
    data, status = REFUSED[name]
    for pieces in cuts(data):
        assert read(pieces) == [status]


def test_headers_are_found_by_lower_case_name_and_joined() -> None:
    """RFC 9110, sections 5.1 and 5.3."""
    (request,) = read([get("ACCEPT: text/plain", "X: 1", "accept:application/openmetrics-text", "Y:\xe9")])
    assert isinstance(request, Request)
    assert request.headers == {
        "host": "here",
        "accept": "text/plain, application/openmetrics-text",
        "x": "1",
        "y": "é",
    }


@pytest.mark.parametrize("length", [0, 1, 100, BODY_BYTES_MAX])
def test_a_body_is_discarded_and_the_next_request_read(length: int) -> None:
    """A body that looks like a request is none: that would be request smuggling."""
    body = (get(target="/smuggled") * (length // 20 + 1))[:length]
    data = get(f"Content-Length: {length}") + body + get(target="/next")
    for pieces in cuts(data):
        paths = [request.path for request in read(pieces) if isinstance(request, Request)]
        assert paths == ["/", "/next"]


def test_it_knows_whether_a_request_has_begun() -> None:
    """The time limit of a request hangs on it: whoever began one must end it."""
    reader = RequestReader(HEAD_BYTES_MAX)
    told = []
    for piece in (b"\r\n", b"GET / HTTP/1.1\r\n", b"Host: a\r\nContent-Length: 2\r\n", b"\r\n", b"a", b"b"):
        reader.feed(piece)
        reader.next_request()
        told.append(reader.in_request)
    assert told == [True, True, True, True, True, False]


def h11_read(data: bytes) -> list[tuple[bytes, bytes, list[tuple[bytes, bytes]]]] | None:
    """What h11 reads of the first request, or None if it refuses it."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=4 * HEAD_BYTES_MAX)
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    return [(event.method, event.target, list(event.headers))] if isinstance(event, h11.Request) else []


TARGETS = st.text("abAB09/?&=%[].:#*", min_size=1, max_size=12).map("/".__add__)
NAMES = st.sampled_from(
    ["Accept", "connection", "X-a", "Content-Length", "Transfer-Encoding", "Expect", "a b", "é"]
)
VALUES = st.one_of(
    st.sampled_from(["close", "keep-alive", "chunked", "0", "5", "1,1", "-1", "", "100-continue"]),
    st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=8),
)


@given(
    st.sampled_from(["GET", "HEAD", "POST", "get", "B@D"]),
    TARGETS,
    st.sampled_from(["1.1", "1.0", "1.2", "2.0"]),
    st.lists(st.tuples(NAMES, st.sampled_from([":", ": ", " :"]), VALUES), max_size=4),
    st.booleans(),
)
def test_what_is_read_is_what_h11_reads(
    method: str, target: str, version: str, headers: list[tuple[str, str, str]], has_host: bool
) -> None:
    """Two readers of one conversation must agree, or one request hides in another; ours is stricter."""
    lines = ["".join(header) for header in headers]
    if has_host:
        lines.insert(0, "Host: here")
    data = head(f"{method} {target} HTTP/{version}", *lines)
    ours, theirs = read([data]), h11_read(data)
    if not ours or not isinstance(ours[0], Request):
        return
    assert theirs, "h11 refuses what we read"
    (their_method, their_target, their_headers) = theirs[0]
    assert ours[0].method == their_method.decode()
    assert f"{ours[0].path}?{ours[0].query}".rstrip("?") == their_target.decode().rstrip("?")
    joined: dict[str, list[str]] = {}
    for name, value in their_headers:
        joined.setdefault(name.decode(), []).append(value.decode("latin-1"))
    assert ours[0].headers == {name: ", ".join(values) for name, values in joined.items()}
