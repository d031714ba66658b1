"""A web server as an origin and as a source, over real TLS with an authority of our own."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import random
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from inference.models.origins import OriginFile, open_origin, range_source
from inference.models.progress import quiet
from inference.models.references import WebReference, parse_reference
from inference.models.sources import SourceBusy
from inference.models.unixfs import build_file
from inference.models.web import WebSource
from inference.models.web_client import WayRefused, open_web
from market.errors import BlockInvalid, ContentUnavailable, RequestInvalid
from market.testing_content import check_source
from tests.inference.models.hub_kit import MIB, Fault, FileHost, serving

DATA = random.Random(9).randbytes(9 * MIB)
SHA256 = hashlib.sha256(DATA).hexdigest()
ABSENT = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's TLS and that of a client who knows its self-signed certificate."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "octo test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "both.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cadata=certificate.public_bytes(serialization.Encoding.PEM).decode())


async def test_a_file_comes_over_tls_and_only_from_a_certified_host(
    tmp_path: Path, authority: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    host = FileHost()
    host.files["files/a model.gguf"] = DATA
    async with serving(host.app(), tls=authority[0]) as url:
        reference = parse_reference(f"{url}/files/a%20model.gguf#sha256={SHA256}")
        async with open_web(tls=authority[1]) as client:
            one = open_origin(reference, web=client)
            assert one.reference == f"{url}/files/a%20model.gguf#sha256={SHA256}"
            (file,) = await one.files()
            assert file == OriginFile(name="a model.gguf", sha256=SHA256)
            assert (await one.bring(file, tmp_path, quiet)).read_bytes() == DATA
        async with open_web() as client:
            with pytest.raises(WayRefused, match="no authority known here"):
                await open_origin(reference, web=client).bring(file, tmp_path / "..", quiet)


async def test_other_bytes_than_the_reference_names_are_refused(tmp_path: Path) -> None:
    host = FileHost()
    host.files["m"] = DATA[:-1]
    async with serving(host.app()) as url, open_web() as client:
        one = open_origin(parse_reference(f"{url}/m#sha256={SHA256}"), web=client)
        (file,) = await one.files()
        with pytest.raises(BlockInvalid, match="not what was promised"):
            await one.bring(file, tmp_path, quiet)


async def test_a_web_server_is_one_more_source_of_ranges(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(DATA)
    root = str(build_file(path).root)
    host, dull = FileHost(), FileHost(ranges=False)
    host.files["m"] = dull.files["m"] = DATA
    async with serving(host.app()) as url, serving(dull.app()) as other, open_web() as client:
        source = WebSource(WebReference(url=f"{url}/m", sha256=SHA256), root, web=client)
        await check_source(source, root=root, content=DATA, absent=ABSENT, blocks=False)
        host.faults = lambda *_: Fault(cut_after=1000)
        with pytest.raises(ContentUnavailable, match="does not deliver"):
            _ = [piece async for piece in source.read_range(root, 0, MIB)]
        host.faults = lambda *_: Fault(status=429, headers={"Retry-After": "7"})
        with pytest.raises(SourceBusy) as busy:
            _ = [piece async for piece in source.read_range(root, 0, MIB)]
        assert busy.value.retry_after_s == 7
        without = WebSource(WebReference(url=f"{other}/m", sha256=SHA256), root, web=client)
        with pytest.raises(ContentUnavailable, match="no ranges"):
            _ = [piece async for piece in without.read_range(root, 5, 10)]
        # a manifest is a stranger's word: it cannot make us ask a host in our own network
        strangers = range_source(parse_reference(f"{url}/m#sha256={SHA256}"), "m", root, web=client)
        assert strangers is not None
        asked = len(host.asked)
        with pytest.raises(ContentUnavailable, match="not a public address"):
            _ = [piece async for piece in strangers.read_range(root, 0, 10)]
        assert len(host.asked) == asked


async def test_names_paths_and_wheels_are_no_sources_of_ranges_and_names_no_origins() -> None:
    async with open_web() as client:
        for text in ("gemma", "./a", "pypi:x==1#a"):
            assert range_source(parse_reference(text), "a", ABSENT, web=client) is None
        with pytest.raises(RequestInvalid, match="not a place"):
            open_origin(parse_reference("gemma"), web=client)
