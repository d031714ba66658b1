"""Every setting of a node: one frozen tree with defaults that work on a laptop with no configuration at all.

Reads nothing: built by hand in a test it holds what it was given, and `node.config` is what fills it from
the command line, the environment and a file. People write amounts in OCTO; here they are 10^-18 OCTO.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from market.caching import Caching
from market.errors import RequestInvalid
from market.money import OCTO, parse_octo
from market.task import Privacy

PREFIX = "OCTO_"
_DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/4001"


def octo_from_text(raw: object) -> int:
    """Settings speak OCTO ("0.10", 5, 0.1); the node counts in 10^-18."""
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        raise ValueError('write an amount of OCTO, like "0.10"')  # noqa: TRY004 - pydantic reports ValueError only
    try:
        return parse_octo(format(Decimal(repr(raw)), "f") if isinstance(raw, float) else str(raw))  # never 1e-05
    except RequestInvalid as error:
        raise ValueError(str(error)) from None


def _listed(raw: object) -> object:
    """`a,b` in the environment is a list, as `["a", "b"]` is in a file."""
    return tuple(part.strip() for part in raw.split(",") if part.strip()) if isinstance(raw, str) else raw


def _multiaddr(raw: object) -> object:
    if not isinstance(raw, str) or not raw.startswith("/") or len(raw) > 512 or any(c.isspace() for c in raw):
        raise ValueError("is not a multiaddr, like /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…")
    return raw


def _whole_path(path: Path) -> Path:
    """Absolute, `~` expanded: the node may change its folder, the setting must not."""
    return path.expanduser().absolute()


def whole_reference(reference: str) -> str:
    """A path of this machine by the same rule; anything else that names a model stays as it is."""
    if reference.startswith(("./", "../", "~/")) or reference in (".", "..", "~"):
        return str(_whole_path(Path(reference)))
    return reference


def size_from_text(raw: object) -> object:
    """`200 GB`, `1.5TB`, `512 MiB`, or bytes."""
    if not isinstance(raw, str):
        return raw
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*([kMGT]i?)?B?", raw.strip())
    if match is None:
        raise ValueError('write a size, like "200 GB" or "1.5 TB"')
    unit = match[2] or ""
    scale = (1024 if unit.endswith("i") else 1000) ** " kMGT".index(unit[:1] or " ")
    return int(Decimal(match[1]) * scale)


Octo = Annotated[int, BeforeValidator(octo_from_text)]
OptionalBytes = Annotated[int, BeforeValidator(size_from_text), Field(ge=0, le=1 << 60)]
Bytes = Annotated[int, BeforeValidator(size_from_text), Field(ge=1 << 20, le=1 << 60)]
Words = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^\S+$")], ...],
    NoDecode,
    BeforeValidator(_listed),
]
Port = Annotated[int, Field(ge=0, le=65535)]
Host = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^\S+$")]
Multiaddrs = Annotated[tuple[Annotated[str, BeforeValidator(_multiaddr)], ...], NoDecode, BeforeValidator(_listed)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Api(_Section):
    """The private HTTP API. Port 0 takes any free one."""

    host: Host = "127.0.0.1"
    port: Port = 8080


class Content(_Section):
    """The public, read-only listener for model blocks. Without a host it listens where the mesh does."""

    host: Host | None = None
    port: Port = 0


class ModelSettings(_Section):
    """Where models lie and come from. `folder`: the store (else `models` in the data folder); `quota`: at most so
    much, the least recently used files go first. `public`: what is pulled is served on to others. `pin`: models to
    keep and serve as files without running them. `trust`: creators to believe (`0x…`, `hf:owner`, `https:host`,
    `pypi:name`). `catalogs`: signed lists to follow (`0x…/name`). `peers`: peer ids that may read what is not public,
    and ask this node to pin. `gateways`, `routers`: IPFS trustless gateways and delegated routers to ask, as URLs.
    `kubo`: the RPC of a Kubo node, through `kubo_client`. `hub`, `hub_token`: Hugging Face's endpoint and token."""

    folder: Annotated[Path, AfterValidator(_whole_path)] | None = None
    quota: Bytes | None = None
    public: bool = True
    pin: Words = ()
    trust: Words = ()
    catalogs: Words = ()
    peers: Words = ()
    gateways: Words = ()
    routers: Words = ()
    kubo: SecretStr | None = None
    kubo_client: Literal["aiohttp", "ipfshttpclient"] = "aiohttp"
    hub: Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^https?://\S+$")] | None = None
    hub_token: SecretStr | None = None


class Mesh(_Section):
    """Where libp2p listens. `dht`: look providers up in, and be found by, the distributed hash table."""

    listen: Multiaddrs = (_DEFAULT_LISTEN,)
    dht: bool = True


class EngineSettings(_Section):
    """`workers` processes of `threads` threads; each serves `slots` tasks of `context` tokens. Without them: what
    `bench hardware --tune` found, else all cores by twos, with eight slots a thread.
    `memory`: for all models together (none: what is free, less a reserve); those that do not fit are loaded when asked
    for. `warm`: names, as in `model` and `serve`, of those that are never unloaded.
    `gpu_layers` of a model go to the graphics cards: -1 all, 0 none, and then no engine but vLLM uses one; none named:
    as many as fit, if llama.cpp was built for cards. `onnx_providers`: where ONNX Runtime computes, most wanted first.
    `packages`: a folder with faster-whisper or diffusers, if they are not installed beside the node (`pip install
    --target`). `response_cache`: so many bytes of answers are kept for `response_cache_ttl_s`, told again; 0: none."""

    workers: Annotated[int, Field(ge=1, le=256)] | None = None
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    slots: Annotated[int, Field(ge=1, le=256)] | None = None
    context: Annotated[int, Field(ge=128, le=1 << 20)] = 2048
    memory: Bytes | None = None
    warm: Words = ()
    gpu_layers: Annotated[int, Field(ge=-1, le=10_000)] | None = None
    onnx_providers: Annotated[tuple[Literal["cpu", "cuda", "tensorrt"], ...], NoDecode, BeforeValidator(_listed)] = ()
    packages: Annotated[Path, AfterValidator(_whole_path)] | None = None
    response_cache: OptionalBytes = 0
    response_cache_ttl_s: Annotated[float, Field(ge=1, le=365 * 24 * 3600)] = 24 * 3600.0


class VllmSettings(_Section):
    """vLLM for text models in safetensors. `python`: that of the environment where it is installed; none: vLLM is not
    used. `slots` tasks run at once, each with `max_model_len` tokens (none: `engine.context`). `memory`: for keys and
    values, of each device; none: 1 GiB on processors, on cards what vLLM finds free. `tensor_parallel`,
    `pipeline_parallel`: over how many devices each layer, and the layers, are split; `ray`: the address of a Ray
    cluster whose machines these may be on (only public prompts are then taken). `devices`: the cards to use.
    `arguments`: more for its command line, from a list of those that are safe. It has `start_s` to come up."""

    python: Annotated[Path, AfterValidator(_whole_path)] | None = None
    slots: Annotated[int, Field(ge=1, le=1024)] = 16
    max_model_len: Annotated[int, Field(ge=128, le=1 << 24)] | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    memory: Bytes | None = None
    tensor_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    pipeline_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    ray: Annotated[str, StringConstraints(max_length=260, pattern=r"^\S*$")] = ""
    devices: Words = ()
    arguments: Words = ()
    start_s: Annotated[float, Field(ge=10, le=24 * 3600)] = 900.0


class Share(_Section):
    """A server that runs already, offered on the mesh: the base URL of its OpenAI API, the model's name there, the key
    that it wants. `forwards`: it sends prompts on to other machines, so that only public ones may go there."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^https?://\S+$")] | None = None
    model: Annotated[str, StringConstraints(max_length=256)] = ""
    key: SecretStr | None = None
    forwards: bool = False


class Prices(_Section):
    """What we ask, in OCTO per million tokens, in realtime; in batch and async mode so many percent of it, and of that
    so many percent for an answer from the cache."""

    input: Octo = OCTO // 10
    output: Octo = 3 * OCTO // 10
    batch_percent: Annotated[int, Field(ge=0, le=1000)] = 60
    async_percent: Annotated[int, Field(ge=0, le=1000)] = 40
    cached_percent: Annotated[int, Field(ge=0, le=99)] = 10


class Payment(_Section):
    """`grant`: what the local ledger gives this node. `deposit`: what a new channel locks. `deposit_cap`: the most
    that one channel may hold, ours or a client's. `credit`: what we deliver ahead of vouchers, to all clients
    together. `prepaid_per_day`: the most that we prepay for input in a day."""

    tick_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    tick_s: Annotated[float, Field(ge=0.1, le=60)] = 2.0
    grant: Octo = 100 * OCTO
    deposit: Octo = 5 * OCTO
    deposit_cap: Octo = 10 * OCTO
    credit: Octo = OCTO // 100
    prepaid_per_day: Octo = OCTO


class ChainSettings(_Section):
    """The EVM chain to settle on. Without `url` (its JSON-RPC endpoint, which may hold a key) payments stay on the
    local ledger. `deployment` is the file that says where the contracts are. `faucet`: on a devnet, ask for play
    money when the wallet is empty. `stake`: a provider stakes for its tier at start. Vouchers are redeemed when
    `settle_at` is due in all, or something has been due for `settle_after_s`."""

    url: SecretStr | None = None
    deployment: Annotated[Path, AfterValidator(_whole_path)] | None = None
    faucet: bool = False
    stake: bool = True
    confirmations: Annotated[int, Field(ge=1, le=64)] = 1
    settle_at: Octo = OCTO
    settle_after_s: Annotated[float, Field(ge=1, le=30 * 24 * 3600)] = 6 * 3600.0
    settle_dust: Octo = OCTO // 1000


class RoutingSettings(_Section):
    """`cache`: whether public requests whose answer is settled (temperature 0, or a seed) may be answered from what a
    provider keeps: of what the same API key asked earlier, or of everybody's requests who shares too.
    `embedding_cache`: this node keeps so many bytes of the vectors that it bought, and buys none of them twice; 0:
    none. Each API key finds its own, with `embedding_cache_shared` those of all."""

    policy: Literal["cost", "speed"] = "cost"
    privacy: Privacy = Privacy.SHARED
    cache: Caching = Caching.OWN
    embedding_cache: OptionalBytes = 0
    embedding_cache_shared: bool = False


class Limits(_Section):
    """Of the HTTP API: the largest body, and how many requests may be under way at once."""

    body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 4 << 20
    requests: Annotated[int, Field(ge=1, le=100_000)] = 64


class LogSettings(_Section):
    """`to = "file"` writes `node.log` in the data folder."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    to: Literal["stderr", "file"] = "stderr"


class Settings(BaseSettings):
    """All settings. `model` is served, and whatever `serve` names besides. Amounts are 10^-18 OCTO here, OCTO where
    people write them. Use `node.config.load_settings`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__", validate_default=False
    )

    data_dir: Annotated[Path, AfterValidator(_whole_path)] = Field(default_factory=lambda: _whole_path(Path("~/.octo")))
    network: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")] = "octo"
    join: Multiaddrs = ()
    provide: bool = True
    model: Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(whole_reference)] = "default"
    serve: Annotated[Words, AfterValidator(lambda names: tuple(map(whole_reference, names)))] = ()
    wallet_password: SecretStr | None = None
    wallet_password_file: Annotated[Path, AfterValidator(_whole_path)] | None = None
    api: Api = Api()
    content: Content = Content()
    mesh: Mesh = Mesh()
    models: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    vllm: VllmSettings = VllmSettings()
    share: Share = Share()
    prices: Prices = Prices()
    payment: Payment = Payment()
    chain: ChainSettings = ChainSettings()
    routing: RoutingSettings = RoutingSettings()
    limits: Limits = Limits()
    log: LogSettings = LogSettings()

    # What `node.config` knows about where each value came from.
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)
    _notes: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's shape
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should hear about these settings though nothing is wrong with them."""
        return self._notes

    def remember(self, sources: Mapping[str, str], *, notes: tuple[str, ...] = ()) -> None:
        """Keep where each value came from, and what a person should hear; for `node.config`."""
        self._sources = dict(sources)
        self._notes = notes

    def source_of(self, key: str) -> str:
        """Where `api.port` was set; `default` if nowhere."""
        return self._sources.get(key, "default")

    def api_ports(self) -> tuple[int, ...]:
        """Ports to try in turn: a second node on one machine finds a free one, unless the user named the port."""
        return (self.api.port,) if "port" in self.api.model_fields_set else (self.api.port, 0)

    def listen_choices(self) -> tuple[tuple[str, ...], ...]:
        """Mesh addresses to try in turn, by the same rule."""
        if "listen" in self.mesh.model_fields_set:
            return (self.mesh.listen,)
        return self.mesh.listen, tuple(address.rpartition("/")[0] + "/0" for address in self.mesh.listen)

    def models_to_serve(self) -> tuple[str, ...]:
        """Who shares a server of their own runs no model besides, unless they name one."""
        own = () if self.share.url is not None and "model" not in self.model_fields_set else (self.model,)
        return (*own, *self.serve)

    def models_folder(self) -> Path:
        return self.models.folder or self.data_dir / "models"

    def content_host(self) -> str:
        """Where the content listener binds: where the mesh listens, so that both are public or neither is."""
        if self.content.host is not None:
            return self.content.host
        kind, host = (*self.mesh.listen[0].split("/"), "", "")[1:3] if self.mesh.listen else ("", "")
        return host if kind in ("ip4", "ip6") else "127.0.0.1"
