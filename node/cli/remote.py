"""The running node, asked over its private HTTP API with the token that lies in its data folder.

Standard library only: a command should not wait for a framework to load. Knows HTTP and the API's
error shape; what the answers mean, the commands know.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from node.cli.exits import NodeAnswered, NodeNotRunning
from node.folder import find_running

_ANSWER_LIMIT_BYTES = 32 << 20
_LINE_LIMIT_BYTES = 4 << 20
"""An event with a result of 1 MiB."""
_JSON = "application/json"
_TOKEN_LIMIT_BYTES = 4096


class Remote:
    """`api` is a base URL like http://127.0.0.1:8080; `key` is the CLI token or an API key."""

    def __init__(self, api: str, key: str, *, timeout_s: float = 10.0) -> None:
        parts = urlsplit(api)
        self.api = f"{parts.scheme}://{parts.netloc}"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or 80
        self._key = key
        self._timeout_s = timeout_s

    def get(self, path: str) -> Any:
        """JSON of a GET; raises NodeNotRunning, NodeAnswered."""
        return _parsed(path, self.get_bytes(path))

    def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float) -> Any:
        """JSON of a POST, for what takes as long as a chain takes; raises NodeNotRunning, NodeAnswered."""
        with closing(self._connection(timeout_s)) as connection:
            return _parsed(path, _read(self._ask(connection, "POST", path, json.dumps(body).encode())))

    def delete(self, path: str) -> Any:
        """JSON of a DELETE; raises NodeNotRunning, NodeAnswered."""
        with closing(self._connection(self._timeout_s)) as connection:
            return _parsed(path, _read(self._ask(connection, "DELETE", path, None)))

    def get_bytes(self, path: str) -> bytes:
        with closing(self._connection(self._timeout_s)) as connection:
            response = self._ask(connection, "GET", path, None)
            return _read(response)

    def stream(
        self,
        path: str,
        body: Mapping[str, Any] | Form,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 120.0,
    ) -> Iterator[dict[str, Any]]:
        """POST and read server-sent events until [DONE]; an error event raises NodeAnswered."""
        data, kind = body.encoded() if isinstance(body, Form) else (json.dumps(body).encode(), _JSON)
        with closing(self._connection(timeout_s)) as connection:
            yield from _events(self._ask(connection, "POST", path, data, {"Content-Type": kind, **(headers or {})}))

    def listen(self, path: str, *, timeout_s: float = 120.0) -> Iterator[dict[str, Any]]:
        """The same of a GET."""
        with closing(self._connection(timeout_s)) as connection:
            yield from _events(self._ask(connection, "GET", path, None))

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        more: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self._key}", "Accept": _JSON}
        if body is not None:
            headers["Content-Type"] = _JSON
        headers.update(more or {})
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            slow = isinstance(error, (TimeoutError, socket.timeout))
            raise NodeNotRunning(
                f"the node at {self.api} {'takes too long to answer' if slow else 'cannot be reached'}.",
                next_step="Its log says more; `octo-node start` starts one.",
            ) from None
        if response.status >= 400:
            try:
                said = json.loads(_read(response))
            except ValueError:
                said = {}
            raise _said_no(response.status, said)
        return response


@dataclass(frozen=True, slots=True)
class Form:
    """A form with one field and one file (RFC 7578)."""

    field: str
    text: str
    file: bytes

    def encoded(self) -> tuple[bytes, str]:
        """The body, and its Content-Type."""
        mark = secrets.token_hex(16)  # 128 random bits: the file does not hold them
        head = f'--{mark}\r\nContent-Disposition: form-data; name="{self.field}"\r\n\r\n{self.text}\r\n'
        file = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n'
        body = b"".join((head.encode(), file.encode(), self.file, f"\r\n--{mark}--\r\n".encode()))
        return body, f"multipart/form-data; boundary={mark}"


def find_node(data_dir: Path, *, timeout_s: float = 10.0) -> Remote:
    """The node that runs in this folder; raises NodeNotRunning."""
    running = find_running(data_dir)
    if running is None:
        raise NodeNotRunning(
            f"no node is running in {data_dir}.",
            next_step="Start one with `octo-node start`, or name its folder with --data-dir.",
        )
    try:
        with Path(running.token_file).open(encoding="ascii") as file:
            token = file.read(_TOKEN_LIMIT_BYTES).strip()
    except (OSError, UnicodeDecodeError):
        raise NodeNotRunning(
            f"the token of the node in {data_dir} cannot be read.", next_step="Run this as the node's own user."
        ) from None
    return Remote(running.api, token, timeout_s=timeout_s)


def _parsed(path: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise NodeAnswered(f"the node's answer to {path} is not JSON.", status=200) from None


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    try:
        while line := response.readline(_LINE_LIMIT_BYTES):
            text = line.decode(errors="replace").strip()
            if not text.startswith("data:"):
                continue
            if (data := text.removeprefix("data:").strip()) == "[DONE]":
                return
            event = json.loads(data)
            if "error" in event and "type" not in event:
                raise _said_no(200, event)
            yield event
    except (OSError, http.client.HTTPException, ValueError):
        raise NodeAnswered("the node broke off in the middle of its answer.", status=200) from None


def _read(response: http.client.HTTPResponse) -> bytes:
    data = response.read(_ANSWER_LIMIT_BYTES + 1)
    if len(data) > _ANSWER_LIMIT_BYTES:
        raise NodeAnswered(f"the node's answer is over {_ANSWER_LIMIT_BYTES} bytes.", status=response.status)
    return data


def _said_no(status: int, said: Any) -> NodeAnswered:
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        return NodeAnswered(f"the node answered HTTP {status}.", status=status)
    octo: dict[str, Any] = error["octo"] if isinstance(error.get("octo"), dict) else {}
    next_step = str(octo.get("next_step") or "")
    message = str(error.get("message") or f"the node answered HTTP {status}.")
    reasons = octo.get("reasons")
    return NodeAnswered(
        message.removesuffix(next_step).strip(),
        next_step=next_step,
        status=status,
        remote_code=str(error.get("code") or ""),
        reasons={str(k): str(v) for k, v in reasons.items()} if isinstance(reasons, dict) else {},
    )
