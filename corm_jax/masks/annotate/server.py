"""The web server of the annotation page: for one person, on this machine alone.

It listens on 127.0.0.1. Other users of the machine, and other sites that the browser has open, are
kept out: the link holds a random token, a cookie repeats it, the Host header must be this server's
(against DNS rebinding), and an answer must come from its own page (Origin).

    GET /                       the page;  /style.css, /page.js  of it
    GET /state                  {"worker", "count", "answered", "next", "finished"}
    GET /pairs/N                what the page shows of the pair of number N, and its answer
    GET /pairs/N/KIND           {"pictures": base64 of PNG files}; waits until they are made
    POST /pairs/N/answer        saves an answer; returns the state
"""

import base64
import json
import secrets
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from dataclasses import asdict
from importlib import resources
from typing import Any

from werkzeug.exceptions import (
    BadRequest,
    Forbidden,
    HTTPException,
    NotFound,
    ServiceUnavailable,
)
from werkzeug.routing import Map, Rule
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from corm_jax.errors import UserError
from corm_jax.masks.annotate.answers import AnswerFile, parse_answer
from corm_jax.masks.annotate.pairs import Pairs
from corm_jax.masks.annotate.pictures import Pictures

HOST = "127.0.0.1"
LARGEST_ANSWER = 64 * 1024  # bytes of a request
PAGE = "index.html"
ASSETS = {PAGE: "text/html", "style.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
ROUTES = Map(
    [
        Rule("/", endpoint="asset", defaults={"name": PAGE}, methods=["GET"]),
        Rule("/<any('style.css', 'page.js'):name>", endpoint="asset", methods=["GET"]),
        Rule("/state", endpoint="state", methods=["GET"]),
        Rule("/pairs/<int:number>", endpoint="pair", methods=["GET"]),
        Rule("/pairs/<int:number>/answer", endpoint="answer", methods=["POST"]),
        Rule("/pairs/<int:number>/<kind>", endpoint="pictures", methods=["GET"]),
    ],
    strict_slashes=False,
    merge_slashes=False,
    redirect_defaults=False,
)


Finish = Callable[[], dict[str, str]]


class Application:
    """The WSGI application.

    Attributes:
      token: that the link must hold.
    """

    def __init__(
        self, pairs: Pairs, pictures: Pictures, answers: AnswerFile, finish: Finish
    ) -> None:
        """Makes the application of one worker's answers.

        Args:
          pairs: what is asked about.
          pictures: of kinds "images", "maps" and "attacks".
          answers: where answers go.
          finish: called when all pairs are answered; writes the CSV and returns what the last page
            says: "csv", where it is, and "flags" for the build that reads it.
        """
        self.token = secrets.token_urlsafe(32)
        self._pairs, self._pictures, self._answers = pairs, pictures, answers
        self._finish = finish
        self._keys = [(feature.class_index, feature.feature) for feature in pairs.features]
        self._endpoints: dict[str, Callable[..., Response]] = {
            "asset": self._asset,
            "state": self._state,
            "pair": self._pair,
            "answer": self._answer,
            "pictures": self._serve_pictures,
        }

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        """Answers a request."""
        request = Request(environ)
        request.max_content_length = LARGEST_ANSWER
        try:
            response = self._respond(request)
        except HTTPException as error:
            response = Response(f"{error.description}\n", error.code, mimetype="text/plain")
        except UserError as error:  # such as a full disk
            response = Response(f"{error}\n", 500, mimetype="text/plain")
        response.headers.update(HEADERS)
        return response(environ, start_response)

    def _respond(self, request: Request) -> Response:
        self._check(request)
        endpoint, values = ROUTES.bind_to_environ(request.environ).match()
        if values.get("number", 0) >= len(self._pairs):
            raise NotFound(f"there is no pair {values['number']}")
        return self._endpoints[endpoint](request, **values)

    def _check(self, request: Request) -> None:
        """Refuses requests of anybody but the page's own user."""
        port = request.environ["SERVER_PORT"]
        if request.host not in (f"{HOST}:{port}", f"localhost:{port}"):
            raise Forbidden(f"this server is {HOST}:{port}; open the link that the command printed")
        given = request.cookies.get(_cookie(request), ""), request.args.get("token", "")
        if not any(secrets.compare_digest(text.encode(), self.token.encode()) for text in given):
            raise Forbidden("the token is missing or old; open the link that the command printed")
        if request.method == "POST" and request.headers.get("Origin") != f"http://{request.host}":
            raise Forbidden("an answer must come from the page itself")

    def _asset(self, request: Request, name: str) -> Response:
        data = resources.files("corm_jax.masks.annotate").joinpath("page", name).read_bytes()
        response = Response(data, mimetype=ASSETS[name])
        if name == PAGE:
            # The page itself, no redirect: after one, a strict cookie would be missing where the
            # link was followed from another site, such as a terminal in the browser.
            cookie = _cookie(request)
            response.set_cookie(cookie, self.token, httponly=True, samesite="Strict")
        return response

    def _state(self, request: Request) -> Response:
        del request
        unanswered = self._unanswered()
        return _json(
            worker=self._answers.worker,
            count=len(self._pairs),
            answered=len(self._pairs) - len(unanswered),
            next=unanswered[0] if unanswered else None,
            finished=None if unanswered else self._finish(),
        )

    def _unanswered(self) -> list[int]:
        answered = self._answers.answers
        return [number for number, key in enumerate(self._keys) if key not in answered]

    def _pair(self, request: Request, number: int) -> Response:
        del request
        following = [other for other in self._unanswered() if other != number][:1]
        self._pictures.show([number, *following])
        feature, name = self._pairs.features[number], self._pairs.class_name(number)
        answer = self._answers.answers.get(self._keys[number])
        return _json(
            class_name=name,
            description=self._pairs.descriptions.get(name, ""),
            feature=feature.feature,
            rank=feature.rank,
            ranks=sum(other.class_index == feature.class_index for other in self._pairs.features),
            following=following[0] if following else None,
            answer=asdict(answer) if answer else None,
        )

    def _serve_pictures(self, request: Request, number: int, kind: str) -> Response:
        del request
        if kind not in self._pictures.kinds:
            raise NotFound(f"there are no {kind} of a pair")
        try:
            pictures = self._pictures.get(kind, number).result()
        except CancelledError as error:
            raise ServiceUnavailable("another pair is being looked at") from error
        return _json(pictures=[base64.b64encode(data).decode() for data in pictures])

    def _answer(self, request: Request, number: int) -> Response:
        if not request.is_json:
            raise BadRequest("an answer is JSON")
        content = request.get_json()
        try:
            answer = parse_answer(content)
        except UserError as error:
            raise BadRequest(str(error)) from error
        self._answers.save(self._keys[number], answer)
        return self._state(request)


def _cookie(request: Request) -> str:
    """Returns the cookie's name: browsers send cookies to all ports of a host."""
    return f"corm_jax_annotate_{request.environ['SERVER_PORT']}"


def _json(**content: Any) -> Response:
    return Response(json.dumps(content), mimetype="application/json")


class _Handler(WSGIRequestHandler):
    """Logs no requests: they would fill the terminal, and one holds the token."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Logs nothing."""


def bind(application: Application, port: int) -> tuple[BaseWSGIServer, str]:
    """Binds a server to a port of 127.0.0.1.

    Args:
      application: what it serves.
      port: 0 for one that is free.

    Returns:
      (server, link to open).

    Raises:
      UserError: if the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port={port} must be from 0 to 65535")
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(
            f"cannot listen on port {port} ({error.strerror}); name another, or leave --port away "
            "for one that is free"
        ) from error
    with listener:  # the server keeps a copy
        server = make_server(
            HOST,
            port,
            application,
            threaded=True,
            request_handler=_Handler,
            fd=listener.fileno(),
        )
    return server, f"http://{HOST}:{server.port}/?token={application.token}"
