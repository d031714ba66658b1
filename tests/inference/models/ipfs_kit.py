"""Doubles of IPFS servers: a gateway by the specification, and a Kubo's RPC with the answers of a real daemon.

The RPC's answers (status, headers, JSON, words) were recorded from js-ipfs 0.18.1, the one daemon with Kubo's RPC that
the package registries have; tests/flow/test_ipfs_interop.py asks that daemon itself.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import libipld
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from inference.models.cid import RAW, Cid, check_block, cid_from_binary, parse_cid
from inference.models.unixfs import Profile, build_file
from market.errors import ContentUnavailable
from tests.inference.models.content_kit import seeded

SMALL = Profile(name="test", leaf_bytes=100_000, width=8)
ABSENT = "bafkreigaknpexyvxt76zgkitavbwx6ejgfheup5oybpm77f3pxzrvpdpdi"
STREAM = {"X-Chunked-Output": "1", "Trailer": "X-Stream-Error", "Cache-Control": "no-cache"}


class Dag:
    """A file of some MB and every block of its DAG, two levels deep."""

    def __init__(self, folder: Path, size: int = 3_000_017) -> None:
        path = folder / "dag.bin"
        path.write_bytes(seeded(size))
        built = build_file(path, SMALL)
        self.content = path.read_bytes()
        self.root = str(built.root)
        self.blocks = {str(cid): block for cid, block in built.nodes}
        for leaf in built.leaves:
            self.blocks[str(Cid(codec=RAW, digest=leaf.digest))] = self.content[leaf.offset :][: leaf.length]

    async def block(self, cid: str) -> bytes:
        if cid not in self.blocks:
            raise ContentUnavailable(f"no block {cid}")
        return self.blocks[cid]


class Gateway:
    """`ranges`: 206 for a range of a file; else 406, as a trustless-only gateway. `raw`: knows `format=raw`."""

    def __init__(self, dag: Dag, *, ranges: bool = True, raw: bool = True) -> None:
        self.dag = dag
        self.ranges = ranges
        self.raw = raw
        self.asked: list[str] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/ipfs/{cid}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        cid = request.match_info["cid"]
        if self.raw and (request.query.get("format") == "raw" or "ipld.raw" in request.headers["Accept"]):
            if cid not in self.dag.blocks:
                return web.Response(status=404)
            return web.Response(body=self.dag.blocks[cid], content_type="application/vnd.ipld.raw")
        if not self.ranges:
            return web.Response(status=406)
        if cid != self.dag.root:
            return web.Response(status=404)
        if "Range" not in request.headers:
            return web.Response(body=self.dag.content, content_type="application/octet-stream")
        size, span = len(self.dag.content), request.http_range
        stop = min(span.stop, size)
        headers = {"Content-Range": f"bytes {span.start}-{stop - 1}/{size}"}
        return web.Response(status=206, body=self.dag.content[span.start : stop], headers=headers)


class KuboDouble:
    """Blocks and pins of one daemon. `says` replaces the lines of a command's answer."""

    def __init__(self, dag: Dag | None = None) -> None:
        self.blocks: dict[str, bytes] = dict(dag.blocks) if dag else {}
        self.files: dict[str, bytes] = {dag.root: dag.content} if dag else {}
        self.pinned: set[str] = set()
        self.says: dict[str, list[bytes]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.authorization: set[str | None] = set()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/api/v0/{command:.+}", self.answer)
        return app

    def commands(self, name: str) -> list[dict[str, str]]:
        return [options for command, options in self.asked if command == name]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        command, options = request.match_info["command"], dict(request.query)
        self.asked.append((command, options))
        self.authorization.add(request.headers.get("Authorization"))
        if command in self.says:
            return await self._stream(request, self.says[command])
        handler = getattr(self, "_" + command.replace("/", "_"), None)
        if handler is None:
            return _json({"Message": "Not Found", "Code": 3, "Type": "error"}, 404)
        return await handler(request, options)  # type: ignore[no-any-return]

    async def _stream(self, request: web.Request, pieces: list[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers=STREAM)
        response.content_type = "application/json"
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    async def _version(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        said = {"Version": "0.18.1", "Commit": "", "Repo": "12", "ipfs-core": "0.18.1"}
        return _json({**said, "interface-ipfs-core": "^0.158.1", "ipfs-http-client": "^60.0.1"})

    async def _id(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        return _json(
            {
                "ID": "12D3KooWQHwY3iVDitHh2kNpA1HEA9HQTfvEkSTUhWyW9vtvKZ38",
                "PublicKey": "CAESINcUBv9/wm8+yoCHW47TiER21G+pVS016TzcpdpOUG87",
                "Addresses": [],
                "AgentVersion": "js-ipfs/0.18.1",
                "ProtocolVersion": "ipfs/0.1.0",
                "Protocols": ["/ipfs/bitswap/1.2.0", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"],
            }
        )

    async def _block_get(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        if options["arg"] not in self.blocks:
            return _error("Failed to get block: request timed out")
        return web.Response(body=self.blocks[options["arg"]], content_type="application/octet-stream")

    async def _block_stat(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        if options["arg"] not in self.blocks:
            return _error("Failed to get block: request timed out")
        return _json({"Key": base58(options["arg"]), "Size": len(self.blocks[options["arg"]])})

    async def _cat(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        if options["arg"] not in self.files:
            return _error("Failed to cat file: request timed out")
        start, length = int(options["offset"]), int(options["length"])
        return await self._stream(request, [self.files[options["arg"]][start : start + length]])

    async def _dag_import(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        part = (await request.post())["file"]
        assert isinstance(part, web.FileField)
        assert options["pin-roots"] == "false"
        for cid, block in read_car(part.file.read()):
            self.blocks[cid] = block
        return await self._stream(request, [])

    async def _pin_add(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        if options["arg"] not in self.blocks:
            return _error("Failed to add pin: block was not found locally (offline)")
        self.pinned.add(options["arg"])
        return _json({"Pins": [base58(options["arg"])]})

    async def _pin_rm(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        if options["arg"] not in self.pinned:
            return _error(f"Failed to remove pin: {options['arg']} is not pinned")
        self.pinned.remove(options["arg"])
        return _json({"Pins": [base58(options["arg"])]})

    async def _pin_ls(self, request: web.Request, options: dict[str, str]) -> web.StreamResponse:
        lines = [{"Type": "recursive", "Cid": base58(cid)} for cid in sorted(self.pinned)]
        return await self._stream(request, [json.dumps(line).encode() + b"\n" for line in lines])


def read_car(car: bytes) -> Iterator[tuple[str, bytes]]:
    """Blocks of a CAR v1, each checked against its CID; the header is read by a library that we did not write."""
    header, *sections = _frames(car)
    said = libipld.decode_dag_cbor(header)
    assert said["version"] == 1
    assert len(said["roots"]) == 1
    for section in sections:
        cid, block = cid_from_binary(section[:36]), section[36:]
        check_block(cid, block)
        yield str(cid), block


def _frames(car: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(car):
        length, shift = 0, 0
        while True:
            byte, at = car[at], at + 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield car[at : at + length]
        at += length


def base58(cid: str) -> str:
    """As js-ipfs prints a CIDv1."""
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    number, text = int.from_bytes(parse_cid(cid).binary, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = alphabet[digit] + text
    return "z" + text


async def endless(request: web.Request) -> web.StreamResponse:
    """Zeros for ever."""
    response = web.StreamResponse(headers={"Content-Type": "application/vnd.ipld.raw"})
    await response.prepare(request)
    while True:
        await response.write(bytes(65536))
        await asyncio.sleep(0)


def _json(said: dict[str, Any], status: int = 200) -> web.Response:
    headers = {"Cache-Control": "no-cache"}
    return web.json_response(said, status=status, headers=headers, content_type="application/json")


def _error(message: str) -> web.Response:
    return _json({"Message": message, "Code": 0, "Type": "error"}, 500)


def tls_of(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's) contexts of a certificate for `names` that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem + secret)
        file.flush()
        server.load_cert_chain(file.name)
    return server, ssl.create_default_context(cadata=pem.decode())
