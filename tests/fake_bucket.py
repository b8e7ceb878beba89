"""A stand-in for Cloud Storage: what gcsfs, tensorstore, Orbax and array_record ask of it.

Objects have generations, which tensorstore compares before it replaces its manifests; the
emulators that can be installed have none that it accepts.
"""

import base64
import email
import email.policy
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

import pytest

google_crc32c = pytest.importorskip("google_crc32c", reason="needs the extra [parity]")


class Object(NamedTuple):
    content: bytes
    generation: int


class Reply(NamedTuple):
    status: int
    content: bytes = b""
    headers: Mapping[str, str] = {}


def as_json(value: Any, **headers: str) -> Reply:
    return Reply(200, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class FakeBucket:
    """A server on this machine with one bucket, `bucket`.

    Attributes:
      objects: by their names; tests read and change them.
      refusal: an HTTP status with which everything is answered from now on, 0 for none.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.refusal = 0
        self._lock = threading.RLock()
        self._generation = 0
        self._uploads: dict[str, tuple[str, bytes]] = {}  # resumable ones that go on
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                reply = fake.answer(self.command, self.path, self.headers, content)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.content)))
                self.end_headers()
                self.wfile.write(reply.content)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """Clients that are killed leave connections behind."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """Returns the variables by which the libraries find it."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs, google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # array_record
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore need not look for credentials
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask by gRPC what kind it is
        }

    def names(self, prefix: str = "") -> list[str]:
        with self._lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name: str, content: bytes) -> Object:
        with self._lock:
            self._generation += 1
            self.objects[name] = Object(content, self._generation)
            return self.objects[name]

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        with self._lock:
            if self.refusal:
                return Reply(self.refusal, b'{"error": {"message": "refused by the test"}}')
            if url.path.startswith("/batch/"):
                return self._batch(headers, body)
            match = re.fullmatch(
                r"/(?:(upload|download)/)?storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?/?", url.path
            )
            if match is None:
                return Reply(404)
            service, bucket, name = match[1], match[2], urllib.parse.unquote(match[3] or "")
            if bucket != "bucket":
                return Reply(404, b'{"error": {"message": "no such bucket"}}')
            if service == "upload":
                return self._upload(query, headers, body)
            if "/o" not in url.path.removeprefix("/download")[len("/storage/v1/b/bucket") :]:
                return as_json({"kind": "storage#bucket", "name": "bucket"})
            if move := re.fullmatch("(.+)/moveTo/o/(.+)", match[3] or ""):
                return self._move(*map(urllib.parse.unquote, move.groups()))
            if not name:
                return self._list(query)
            return self._object(method, name, query, headers, service == "download")

    def _object(
        self,
        method: str,
        name: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        download: bool,
    ) -> Reply:
        found = self.objects.get(name)
        if refused := self._precondition(name, query):
            return refused
        if found is None:
            return Reply(404, b'{"error": {"message": "no such object"}}')
        if method == "DELETE":
            del self.objects[name]
            return Reply(204)
        if not download and query.get("alt") != "media":
            return as_json(self._about(name))
        content, status, more = found.content, 200, {}
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or ""):
            size = len(content)
            first = int(span[1]) if span[1] else max(0, size - int(span[2]))
            last = min(int(span[2]), size - 1) if span[1] and span[2] else size - 1
            if first >= size:
                return Reply(416, headers={"Content-Range": f"bytes */{size}"})
            content, status = content[first : last + 1], 206
            more = {"Content-Range": f"bytes {first}-{last}/{size}"}
        generation = {"x-goog-generation": str(found.generation)}
        return Reply(status, content, {**more, **generation, "x-goog-hash": _hash(found.content)})

    def _precondition(self, name: str, query: Mapping[str, str]) -> Reply | None:
        generation = self.objects[name].generation if name in self.objects else 0
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return Reply(412, b'{"error": {"message": "another generation"}}')
        if query.get("ifGenerationNotMatch") == str(generation):
            return Reply(304)
        return None

    def _about(self, name: str) -> dict[str, Any]:
        found, where = self.objects[name], urllib.parse.quote(name, safe="")
        return {
            "kind": "storage#object",
            "bucket": "bucket",
            "name": name,
            "size": str(len(found.content)),
            "generation": str(found.generation),
            "metageneration": "1",
            "crc32c": _checksum(found.content),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "mediaLink": f"{self.url}/download/storage/v1/b/bucket/o/{where}",
        }

    def _list(self, query: Mapping[str, str]) -> Reply:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names = [n for n in self.names(prefix) if n >= query.get("startOffset", "")]
        names = [n for n in names if n < query.get("endOffset", chr(0x10FFFF))]
        items, prefixes = [], {}
        for name in names:
            head, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found and delimiter:
                prefixes[prefix + head + delimiter] = None
            else:
                items.append(self._about(name))
        return as_json({"kind": "storage#objects", "items": items, "prefixes": list(prefixes)})

    def _move(self, source: str, target: str) -> Reply:
        if source not in self.objects:
            return Reply(404, b'{"error": {"message": "no such object"}}')
        self.put(target, self.objects.pop(source).content)
        return as_json(self._about(target))

    def _upload(self, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Reply:
        if "upload_id" in query:
            return self._go_on(query["upload_id"], headers, body)
        name = query.get("name", "")
        if query["uploadType"] == "resumable":
            name = name or json.loads(body)["name"]
            key = str(len(self._uploads))
            self._uploads[key] = (name, b"")
            place = f"{self.url}/upload/storage/v1/b/bucket/o?upload_id={key}"
            return as_json({}, Location=place)
        if query["uploadType"] == "multipart":
            about, content = (part for part, _ in _parts(headers, body))
            name, body = json.loads(about)["name"], content
        if refused := self._precondition(name, query):
            return refused
        self.put(name, body)
        return as_json(self._about(name))

    def _go_on(self, key: str, headers: Mapping[str, str], body: bytes) -> Reply:
        name, content = self._uploads[key]
        content += body
        self._uploads[key] = (name, content)
        if (headers.get("Content-Range") or "").endswith("/*"):
            return Reply(308, headers={"Range": f"bytes=0-{len(content) - 1}"})
        self.put(name, content)
        return as_json(self._about(name))

    def _batch(self, headers: Mapping[str, str], body: bytes) -> Reply:
        answers = []
        for part, number in _parts(headers, body):
            method, target, _ = part.decode().split(" ", 2)
            reply = self.answer(method, urllib.parse.urlsplit(target).path, {}, b"")
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n"
                f"\r\nHTTP/1.1 {reply.status} Said\r\n\r\n{reply.content.decode()}\r\n"
            )
        content = "".join(answers) + "--batch--\r\n"
        return Reply(200, content.encode(), {"Content-Type": "multipart/mixed; boundary=batch"})


def _parts(headers: Mapping[str, str], body: bytes) -> Iterator[tuple[bytes, str]]:
    """Yields each part of a message and its Content-ID."""
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    for part in message.iter_parts():
        yield part.get_payload(decode=True), str(part.get("Content-ID", "")).strip("<>")


def _checksum(content: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


def _hash(content: bytes) -> str:
    return f"crc32c={_checksum(content)}"
