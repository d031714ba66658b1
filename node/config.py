"""The only reader of the environment and of configuration files.

In order of authority: overrides (the command line), `OCTO_*` variables (`OCTO_API__PORT` is `api.port`),
one TOML, YAML or JSON file, the defaults of `node.settings`. A secret is never echoed, neither by an error
nor by `explain`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, BeforeValidator, SecretStr, ValidationError
from pydantic_settings import (
    EnvSettingsSource,
    JsonConfigSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

from market.errors import NodeMisconfigured
from market.money import format_octo
from node.settings import PREFIX, Settings, octo_from_text

__all__ = ["Settings", "explain", "load_settings", "wallet_password"]

CONFIG_LIMIT_BYTES = 1 << 20
_CONFIG = PREFIX + "CONFIG"
_FILE_NAMES = ("config.toml", "config.yaml", "config.yml", "config.json")
_COMMAND_LINE, _ENVIRONMENT = "command line", "environment"
_ALIKE = 0.75
"""Of difflib: `engine.threds` means `engine.threads`, `engine.nonsense` means nothing."""
_OTHERS = {"HF_ENDPOINT": "models.hub", "HF_TOKEN": "models.hub_token"}
"""Variables that are not ours, which users of Hugging Face have set already; anything of ours outranks them."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Values of one origin; `name` is what a person would call it."""

    name: str
    values: dict[str, Any]


def load_settings(*, config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from overrides (`{"api.port": 8081}`; None = not given), environment and file.

    `config` is the file; else OCTO_CONFIG; else config.toml, .yaml or .json in the data folder. Raises
    NodeMisconfigured naming the key, where it was set, what is wrong, and what to do.
    """
    layers = [_Layer(_COMMAND_LINE, _nested(overrides or {})), _Layer(_ENVIRONMENT, _environment())]
    others = _Layer(_ENVIRONMENT, _nested({key: os.environ.get(name) or None for name, key in _OTHERS.items()}))
    named = config or (Path(os.environ[_CONFIG]) if os.environ.get(_CONFIG) else None)
    file = named.expanduser() if named is not None else _file_in_data_dir(layers)
    if file is not None:
        layers.append(_Layer(str(file), _read_file(file)))
        if named is None and "data_dir" in layers[-1].values:
            raise NodeMisconfigured(
                f"data_dir is set in {file}, which lies in the data folder itself.",
                next_step="Set OCTO_DATA_DIR, or name the file with --config.",
            )
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in reversed([*layers, others]):
        _merge(merged, layer.values, layer.name, sources)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise _misconfigured(error, sources) from None
    settings.remember(sources, notes=_strange_variables())
    _check_together(settings, file)
    return settings


def explain(settings: Settings) -> list[tuple[str, str, str]]:
    """Each setting as (key, value, where it was set), for `octo-node config check`; secrets hidden."""
    return [(key, shown, _origin(key, settings.source_of(key))) for key, shown in _shown(settings, "")]


def wallet_password(settings: Settings) -> str | None:
    """The user's own password for the wallet, if one is set. Raises NodeMisconfigured if its file cannot be read."""
    if settings.wallet_password is not None:
        return settings.wallet_password.get_secret_value()
    if settings.wallet_password_file is None:
        return None
    try:
        with settings.wallet_password_file.open(encoding="utf-8") as file:
            return file.read(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise NodeMisconfigured(
            f"wallet_password_file: {settings.wallet_password_file} cannot be read.",
            next_step="Set OCTO_WALLET_PASSWORD_FILE to a text file that holds the password alone.",
        ) from None


def _environment() -> dict[str, Any]:
    try:
        found: dict[str, Any] = EnvSettingsSource(Settings, env_ignore_empty=True)()
    except SettingsError:  # its text may quote the value
        raise NodeMisconfigured(
            "a variable that holds a whole section, like OCTO_API, is not JSON.",
            next_step="Set single values with two underscores, like OCTO_API__PORT=8081.",
        ) from None
    return found


def _file_in_data_dir(layers: Iterable[_Layer]) -> Path | None:
    given = next((layer.values["data_dir"] for layer in layers if "data_dir" in layer.values), None)
    try:
        data_dir = Path(given).expanduser() if given is not None else Settings().data_dir
    except RuntimeError:
        raise NodeMisconfigured(
            "this user has no home folder to keep a node in.", next_step="Set OCTO_DATA_DIR to a folder."
        ) from None
    found = [data_dir / name for name in _FILE_NAMES if (data_dir / name).is_file()]
    if len(found) > 1:
        raise NodeMisconfigured(
            f"{data_dir} holds {' and '.join(path.name for path in found)}: which of them counts?",
            next_step="Keep one, or name it with --config or OCTO_CONFIG.",
        )
    return found[0] if found else None


def _read_file(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > CONFIG_LIMIT_BYTES:
            raise ValueError(f"it is larger than {CONFIG_LIMIT_BYTES} bytes")
        match file.suffix:
            case ".toml":
                return dict(TomlConfigSettingsSource(Settings, toml_file=file).toml_data)
            case ".yaml" | ".yml":
                return dict(YamlConfigSettingsSource(Settings, yaml_file=file).yaml_data)
            case ".json":
                return dict(JsonConfigSettingsSource(Settings, json_file=file).json_data)
        raise ValueError("its name does not end in .toml, .yaml or .json")
    except OSError as error:
        reason = str(error.strerror)
    except Exception as error:  # noqa: BLE001 - three parsers, each with errors of its own
        # One line: YAML's errors go on to quote the text around the fault, secrets and all.
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    raise NodeMisconfigured(
        f"the configuration file {file} cannot be read: {reason}.",
        next_step="Correct it, or name another with --config or OCTO_CONFIG.",
    )


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{"api.port": 1}` as `{"api": {"port": 1}}`."""
    nested: dict[str, Any] = {}
    for key, given in overrides.items():
        if given is None:
            continue
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = given
    return nested


def _merge(
    into: dict[str, Any], values: Mapping[str, Any], name: str, sources: dict[str, str], above: str = ""
) -> None:
    for key, given in values.items():
        path = f"{above}{key}"
        if isinstance(given, Mapping):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], given, name, sources, path + ".")
        else:
            into[key] = given
            sources[path] = name


def _misconfigured(error: ValidationError, sources: Mapping[str, str]) -> NodeMisconfigured:
    first = error.errors(include_input=False, include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    source = next((sources[".".join(path[:n])] for n in range(len(path), 0, -1) if ".".join(path[:n]) in sources), "")
    where = _origin(key, source)
    if first["type"] == "extra_forbidden":
        meant = difflib.get_close_matches(key, [known for known, _ in _shown(Settings(), "")], n=1, cutoff=_ALIKE)
        return NodeMisconfigured(
            f"{key} (from {where}) is no setting.",
            next_step=f"Did you mean {meant[0]}?" if meant else "`octo-node config check` lists them all.",
        )
    reason = first["msg"].removeprefix("Value error, ").rstrip(".")
    reason = reason.replace("Input should", "it should", 1)
    there = "on the command line" if source == _COMMAND_LINE else f"in {where}"
    return NodeMisconfigured(f"{key} (from {where}): {reason}.", next_step=f"Correct it {there}.")


def _check_together(settings: Settings, file: Path | None) -> None:
    payment = settings.payment
    if not 0 < payment.deposit <= payment.deposit_cap:
        raise NodeMisconfigured(
            f"payment.deposit is {format_octo(payment.deposit)}, payment.deposit_cap is "
            f"{format_octo(payment.deposit_cap)}: no channel could be opened.",
            next_step="Raise payment.deposit_cap or lower payment.deposit.",
        )
    if settings.wallet_password is not None and settings.wallet_password_file is not None:
        raise NodeMisconfigured(
            "wallet_password and wallet_password_file are both set.", next_step="Unset one of them."
        )
    in_file = file is not None and settings.source_of("wallet_password") == str(file)
    if file is not None and in_file and file.stat().st_mode & 0o077:
        raise NodeMisconfigured(
            f"{file} holds the wallet password, and others on this machine may read it.",
            next_step=f"Run: chmod 600 {file}",
        )


def _strange_variables() -> tuple[str, ...]:
    """OCTO_ variables that set nothing: another program's, or a slip that would go unseen."""
    known = {_variable(key) for key, _ in _shown(Settings(), "")} | {_CONFIG}
    sections = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    notes = []
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper().split("__")[0] not in sections | {_CONFIG}:
            meant = difflib.get_close_matches(name.upper(), known, n=1)
            notes.append(f"{name} is no setting" + (f"; did you mean {meant[0]}?" if meant else "."))
    return tuple(notes)


def _variable(key: str) -> str:
    return PREFIX + key.upper().replace(".", "__")


def _origin(key: str, source: str) -> str:
    return _variable(key) if source == _ENVIRONMENT else source


def _shown(section: BaseModel, above: str) -> Iterator[tuple[str, str]]:
    for name, field in type(section).model_fields.items():
        held = getattr(section, name)
        if isinstance(held, BaseModel):
            yield from _shown(held, f"{above}{name}.")
        elif any(isinstance(rule, BeforeValidator) and rule.func is octo_from_text for rule in field.metadata):
            yield above + name, format_octo(held)
        else:
            yield above + name, _text(held)


def _text(held: object) -> str:
    if isinstance(held, SecretStr):
        return "(hidden)"
    if isinstance(held, tuple):
        return ", ".join(str(part) for part in held) or "(none)"
    if isinstance(held, bool):
        return str(held).lower()
    return "(not set)" if held is None else str(held)
