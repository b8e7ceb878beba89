"""Pairs with pictures of plain colours, and a server of them."""

import http.client
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corm_jax.masks.annotate import answers, server
from corm_jax.masks.annotate.pairs import Pairs
from corm_jax.masks.annotate.pictures import Pictures
from corm_jax.masks.building.selection import Feature

PAIRS = Pairs(
    features=(Feature(0, 7, 1, 0.5), Feature(0, 3, 2, 0.25), Feature(2, 7, 1, 0.125)),
    class_names=("n01", "n02", "n03"),
    descriptions={"n01": "otter"},
)
FINGERPRINT = answers.fingerprint(PAIRS.features, PAIRS.class_names)
SHADES = {"images": 0, "maps": 80, "attacks": 160}


def plain(kind: str, number: int, rank: int) -> bytes:
    """A PNG file whose colour tells kind, pair and rank."""
    file = io.BytesIO()
    pixels = np.full((8, 8, 3), (SHADES[kind], 40 * number, 50 * rank), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Served:
    """A running server of `PAIRS`, with five pictures of a kind and pair."""

    def __init__(self, directory: Path, makers: dict[str, Callable] | None = None) -> None:
        self.csv = directory / "answers.csv"
        self.directory = directory / "answers"
        self.file = answers.AnswerFile(self.directory / "ann.jsonl", "ann", FINGERPRINT)
        self.pictures = Pictures(makers or {kind: self._maker(kind) for kind in SHADES})
        self.application = server.Application(PAIRS, self.pictures, self.file, self._finish)
        self.server, self.link = server.bind(self.application, 0)
        self.address = f"127.0.0.1:{self.server.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    def _maker(self, kind: str) -> Callable[[int], list[bytes]]:
        return lambda number: [plain(kind, number, rank) for rank in range(5)]

    def _finish(self) -> dict[str, str]:
        answers.export(self.directory, self.csv, PAIRS.features, PAIRS.class_names)
        return {"csv": str(self.csv), "flags": "--config.annotations.path=answers.csv"}

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Any = None,
        token: str | None = None,
        **headers: str,
    ) -> tuple[int, dict[str, str], bytes]:
        """Returns (status, headers, content); by default as the page itself asks."""
        connection = http.client.HTTPConnection(self.address, timeout=20)
        token = self.application.token if token is None else token
        values = {
            "Host": self.address,
            "Cookie": f"corm_jax_annotate_{self.server.port}={token}",
            "Origin": f"http://{self.address}",
            "Content-Type": "application/json",
        } | {key.replace("_", "-"): value for key, value in headers.items()}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {k: v for k, v in values.items() if v})
        response = connection.getresponse()
        try:
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, _, content = self.request(path)
        assert status == 200, content
        return json.loads(content)

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.pictures.close()
        self.file.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
