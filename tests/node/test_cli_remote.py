"""The CLI's small HTTP client against a server that says what a node would, and what it should not."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from node.cli.exits import NodeAnswered, NodeNotRunning
from node.cli.remote import Remote

ERROR = {"error": {"message": "nobody is here. Try again.", "code": "no_provider", "type": "network_error",
                   "octo": {"next_step": "Try again.", "reasons": {"12D3": "is asleep"}}}}  # fmt: skip
STREAMS = {
    "/good": 'data: {"n": 1}\n\n: a comment\n\ndata: {"n": 2}\n\ndata: [DONE]\n\ndata: {"n": 3}\n\n',
    "/fails": f'data: {{"n": 1}}\n\ndata: {json.dumps(ERROR)}\n\n',
    "/garbled": "data: {not json\n\n",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer key":
            self.say(401, json.dumps({"error": {"message": "no.", "code": "invalid_api_key"}}))
        elif self.path == "/ok":
            self.say(200, '{"fine": true}')
        elif self.path == "/html":
            self.say(502, "<html>")
        else:
            self.say(503, json.dumps(ERROR))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.say(200, STREAMS[self.path])

    def say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer_is_parsed(api: str) -> None:
    assert Remote(api, "key").get("/ok") == {"fine": True}


def test_a_refusal_keeps_cause_next_step_code_and_reasons(api: str) -> None:
    with pytest.raises(NodeAnswered) as caught:
        Remote(api, "key").get("/offers")
    error = caught.value
    assert (error.message, error.next_step, error.remote_code) == ("nobody is here.", "Try again.", "no_provider")
    assert error.reasons == {"12D3": "is asleep"}


def test_a_wrong_key_is_refused_and_not_shown(api: str) -> None:
    with pytest.raises(NodeAnswered) as caught:
        Remote(api, "another key").get("/ok")
    assert caught.value.status == 401
    assert "another key" not in str(caught.value)


def test_a_refusal_that_is_no_json_still_names_the_status(api: str) -> None:
    with pytest.raises(NodeAnswered, match="HTTP 502"):
        Remote(api, "key").get("/html")


def test_a_stream_ends_at_done(api: str) -> None:
    assert [event["n"] for event in Remote(api, "key").stream("/good", {})] == [1, 2]


def test_an_error_in_a_stream_is_raised_after_what_came_before(api: str) -> None:
    stream = Remote(api, "key").stream("/fails", {})
    assert next(stream) == {"n": 1}
    with pytest.raises(NodeAnswered, match="nobody is here"):
        next(stream)


def test_a_garbled_stream_is_an_error_of_the_node(api: str) -> None:
    with pytest.raises(NodeAnswered, match="broke off"):
        list(Remote(api, "key").stream("/garbled", {}))


def test_nobody_listening_is_a_node_that_does_not_run() -> None:
    with pytest.raises(NodeNotRunning, match="cannot be reached"):
        Remote("http://127.0.0.1:9", "key").get("/ok")
