import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from annotate_fixtures import Served, plain, wait_until

from corm_jax.errors import UserError
from corm_jax.masks.annotate import server

ANSWER = {"main": "background", "confidence": 4, "reasons": "water"}


def test_link_opens_the_page_and_its_cookie_the_rest(served: Served) -> None:
    path = served.link.removeprefix(f"http://{served.address}")
    status, headers, content = served.request(path, Cookie="")
    assert status == 200
    assert b"<title>Annotate features</title>" in content
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(f"corm_jax_annotate_{served.server.port}={served.application.token};")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for name in ("style.css", "page.js"):
        assert served.request(f"/{name}", Cookie=cookie.partition(";")[0])[0] == 200


@pytest.mark.parametrize("path", ["/", "/page.js", "/state", "/pairs/0", "/pairs/0/images"])
def test_nothing_is_served_without_the_token(served: Served, path: str) -> None:
    for wrong in ("", "x", "é", served.application.token[:-1], served.application.token + "x"):
        status, _, content = served.request(path, token=wrong)
        assert status == 403
        assert content.startswith(b"the token is missing or old; open the link")
    assert served.request(f"{path}?token=x", Cookie="")[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", ""])
def test_other_hosts_are_refused(served: Served, host: str) -> None:
    host = host.format(port=served.server.port)
    assert served.request("/state", Host=host or "x")[0] == 403
    assert served.request("/state", Host=f"localhost:{served.server.port}")[0] == 200


def test_answers_from_other_pages_are_refused(served: Served) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", ""):
        status, _, _ = served.request("/pairs/0/answer", method="POST", body=ANSWER, Origin=origin)
        assert status == 403
    assert not served.file.answers


def test_server_listens_on_the_loopback_address_alone(served: Served) -> None:
    assert served.server.socket.getsockname()[0] == "127.0.0.1"


def test_pair_is_described_with_the_answer_that_it_has(served: Served) -> None:
    assert served.get("/pairs/1") == {
        "class_name": "n01",
        "description": "otter",
        "feature": 3,
        "rank": 2,
        "ranks": 2,
        "following": 0,
        "answer": None,
    }
    served.request("/pairs/1/answer", method="POST", body=ANSWER)
    assert served.get("/pairs/1")["answer"] == ANSWER


def test_state_leads_to_the_first_unanswered_pair_and_to_the_end(served: Served) -> None:
    start = {"worker": "ann", "count": 3, "answered": 0, "next": 0, "finished": None}
    assert served.get("/state") == start
    expected = {1: (1, 0), 0: (2, 2), 2: (3, None)}
    for number, (answered, following) in expected.items():
        status, _, content = served.request(f"/pairs/{number}/answer", method="POST", body=ANSWER)
        state = json.loads(content)
        assert status == 200
        assert (state["answered"], state["next"]) == (answered, following)
        assert served.csv.exists() == (number == 2)
    assert state["finished"]["csv"] == str(served.csv)
    assert served.csv.read_text().count("background,4,water") == 3


def test_pictures_are_those_of_the_pair(served: Served) -> None:
    import base64

    for kind in ("images", "maps", "attacks"):
        pictures = served.get(f"/pairs/2/{kind}")["pictures"]
        assert [base64.b64decode(p) for p in pictures] == [plain(kind, 2, r) for r in range(5)]


@pytest.mark.parametrize(
    ("path", "method", "body", "status"),
    [
        ("/pairs/3", "GET", None, 404),
        ("/pairs/-1", "GET", None, 404),
        ("/pairs/0/secrets", "GET", None, 404),
        ("/../answers.py", "GET", None, 404),
        ("/index.html", "GET", None, 404),
        ("/state", "POST", ANSWER, 405),
        ("/pairs/0/answer", "GET", None, 404),
        ("/pairs/3/answer", "POST", ANSWER, 404),
        ("/pairs/0/answer", "POST", {**ANSWER, "main": "both"}, 400),
        ("/pairs/0/answer", "POST", b"{", 400),
        ("/pairs/0/answer", "POST", {**ANSWER, "reasons": "x" * 10**5}, 413),
    ],
)
def test_bad_requests_change_nothing(
    served: Served, path: str, method: str, body: object, status: int
) -> None:
    assert served.request(path, method=method, body=body)[0] == status
    assert not served.file.answers


def test_answers_must_be_json(served: Served) -> None:
    options = {"method": "POST", "body": ANSWER, "Content_Type": "text/plain"}
    assert served.request("/pairs/0/answer", **options)[0] == 400


def test_answer_that_cannot_be_written_is_reported(served: Served) -> None:
    served.file.close()
    with Path("/dev/full").open("ab", buffering=0) as served.file._file:
        status, _, content = served.request("/pairs/0/answer", method="POST", body=ANSWER)
    assert status == 500
    assert b"cannot write" in content
    assert served.get("/state")["answered"] == 0


def test_taken_port_is_named(served: Served) -> None:
    with pytest.raises(UserError, match=f"cannot listen on port {served.server.port} .*in use"):
        server.bind(served.application, served.server.port)
    for port in (70000, -1):
        with pytest.raises(UserError, match=f"--port={port} must be from 0 to 65535"):
            server.bind(served.application, port)


class Slow:
    """Makes pictures when it is let, and notes of which pairs."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.let = threading.Semaphore(0)

    def __call__(self, number: int) -> list[bytes]:
        self.begun.append(number)
        assert self.let.acquire(timeout=20)
        if number == 2:
            raise UserError("cannot write attacks/1.png: no space left")
        return [b"made"]


def slowly(tmp_path: Path, check: Callable[[Served, Slow], None]) -> None:
    slow = Slow()
    running = Served(tmp_path, {"images": lambda number: [b"quick"], "attacks": slow})
    try:
        check(running, slow)
    finally:
        slow.let.release(10)
        running.close()


def test_pictures_that_nobody_waits_for_are_not_made(tmp_path: Path) -> None:
    def check(served: Served, slow: Slow) -> None:
        served.get("/pairs/0")  # 0, then 1
        wait_until(lambda: slow.begun == [0])
        served.request("/pairs/0/answer", method="POST", body=ANSWER)
        served.get("/pairs/2")  # 2, then 1
        slow.let.release(3)
        wait_until(lambda: slow.begun == [0, 2, 1])

    slowly(tmp_path, check)


def test_pictures_of_another_pair_than_is_shown_are_given_up(tmp_path: Path) -> None:
    def check(served: Served, slow: Slow) -> None:
        served.get("/pairs/0")
        wait_until(lambda: slow.begun == [0])
        replies: list[int] = []
        waiting = threading.Thread(
            target=lambda: replies.append(served.request("/pairs/1/attacks")[0])
        )
        waiting.start()
        served.request("/pairs/0/answer", method="POST", body=ANSWER)
        served.request("/pairs/1/answer", method="POST", body=ANSWER)
        while waiting.is_alive():  # it may begin to wait only now
            served.get("/pairs/2")
            waiting.join(0.02)
        assert replies == [503]

    slowly(tmp_path, check)


def test_quick_pictures_do_not_wait_for_slow_ones_and_failures_are_told(tmp_path: Path) -> None:
    def check(served: Served, slow: Slow) -> None:
        served.get("/pairs/2")
        assert served.get("/pairs/2/images")["pictures"]
        assert len(slow.begun) <= 1
        slow.let.release()
        status, _, content = served.request("/pairs/2/attacks")
        assert status == 500
        assert content == b"cannot write attacks/1.png: no space left\n"

    slowly(tmp_path, check)
