"""Settings work with nothing set, say where each came from, and name the slip and the way out."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from market.errors import NodeMisconfigured
from market.money import OCTO
from market.task import Privacy
from node.cli.options import reference_here
from node.config import Settings, explain, load_settings, wallet_password
from node.settings import Api, Mesh


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No OCTO_ variable, and a home of our own."""
    import os

    for name in [name for name in os.environ if name.upper().startswith("OCTO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_nothing_at_all_is_a_configuration(tmp_path):
    settings = load_settings()
    assert settings.data_dir == tmp_path / ".octo"
    assert (settings.network, settings.model, settings.provide) == ("octo", "default", True)
    assert settings.payment.grant == 100 * OCTO
    assert settings.prices.output == 3 * OCTO // 10
    assert settings.routing.privacy is Privacy.SHARED
    assert settings == Settings()
    assert settings.notes == ()


def test_settings_cannot_change(tmp_path):
    with pytest.raises(ValidationError):
        load_settings().api.port = 1
    with pytest.raises(ValidationError):
        load_settings().network = "x"


def test_settings_built_by_hand_read_no_environment(monkeypatch):
    monkeypatch.setenv("OCTO_NETWORK", "elsewhere")
    assert Settings().network == "octo"


FILES = {
    "config.toml": 'network = "filed"\n[api]\nport = 1\n[mesh]\nlisten = ["/ip4/127.0.0.1/tcp/9"]\n'
    '[prices]\ninput = "0.25"\noutput = 0.7\n',
    "config.yaml": "network: filed\napi: {port: 1}\nmesh: {listen: [/ip4/127.0.0.1/tcp/9]}\n"
    "prices: {input: 0.25 OCTO, output: 0.7}\n",
    "config.json": json.dumps(
        {"network": "filed", "api": {"port": 1}, "mesh": {"listen": ["/ip4/127.0.0.1/tcp/9"]},
         "prices": {"input": "0.25", "output": 0.7}}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["argument", "variable", "data folder"])
def test_all_three_formats_say_the_same_from_all_three_places(tmp_path, monkeypatch, name, how):
    place = tmp_path / (".octo" if how == "data folder" else "etc")
    place.mkdir()
    (place / name).write_text(FILES[name])
    if how == "variable":
        monkeypatch.setenv("OCTO_CONFIG", str(place / name))
    settings = load_settings(config=place / name if how == "argument" else None)
    assert (settings.network, settings.api.port, settings.mesh.listen) == ("filed", 1, ("/ip4/127.0.0.1/tcp/9",))
    assert (settings.prices.input, settings.prices.output) == (OCTO // 4, 7 * OCTO // 10)
    assert settings.source_of("api.port") == str(place / name)


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path, monkeypatch):
    file = tmp_path / "c.toml"
    file.write_text("[api]\nport = 1\nhost = 'file'\n[limits]\nrequests = 3\n")
    monkeypatch.setenv("OCTO_API__PORT", "2")
    monkeypatch.setenv("OCTO_API__HOST", "env")
    settings = load_settings(config=file, overrides={"api.port": 3, "network": None})
    assert (settings.api.port, settings.api.host, settings.limits.requests) == (3, "env", 3)
    told = {key: (shown, source) for key, shown, source in explain(settings)}
    assert told["api.port"] == ("3", "command line")
    assert told["api.host"] == ("env", "OCTO_API__HOST")
    assert told["limits.requests"] == ("3", str(file))
    assert told["network"] == ("octo", "default")
    assert told["prices.input"] == ("0.1 OCTO", "default")
    assert told["engine.context"] == ("2048", "default")


def test_explain_tells_every_setting():
    keys = {key for key, _, _ in explain(load_settings())}
    assert {"data_dir", "join", "engine.workers", "payment.tick_s", "log.level", "wallet_password"} <= keys
    assert len(keys) == len(explain(load_settings()))


def test_a_list_in_the_environment_is_separated_by_commas(monkeypatch):
    monkeypatch.setenv("OCTO_JOIN", "/ip4/192.0.2.1/tcp/1, /ip4/192.0.2.2/tcp/2,")
    monkeypatch.setenv("OCTO_MESH__LISTEN", "/ip4/127.0.0.1/tcp/0")
    settings = load_settings()
    assert settings.join == ("/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/2")
    assert settings.mesh.listen == ("/ip4/127.0.0.1/tcp/0",)


def test_an_empty_variable_is_no_value(monkeypatch):
    monkeypatch.setenv("OCTO_ENGINE__WORKERS", "")
    assert load_settings().engine.workers is None


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("OCTO_API__PORT", "70000", "api.port"),
        ("OCTO_API__PORT", "http", "api.port"),
        ("OCTO_JOIN", "192.0.2.1:4001", "join"),
        ("OCTO_NETWORK", "Octo Net", "network"),
        ("OCTO_PRICES__INPUT", "-1", "prices.input"),
        ("OCTO_PRICES__INPUT", "cheap", "prices.input"),
        ("OCTO_PRICES__INPUT", "1e999999999", "prices.input"),
        ("OCTO_PRICES__INPUT", "nan", "prices.input"),
        ("OCTO_ROUTING__POLICY", "best", "routing.policy"),
        ("OCTO_ENGINE__SLOTS", "0", "engine.slots"),
        ("OCTO_LOG__LEVEL", "loud", "log.level"),
    ],
)
def test_a_bad_value_names_the_key_and_where_it_was_set(monkeypatch, name, text, key):
    monkeypatch.setenv(name, text)
    with pytest.raises(NodeMisconfigured, match=key.replace(".", r"\.")) as caught:
        load_settings()
    assert f"from {name}" in caught.value.message
    assert name in caught.value.next_step


@pytest.mark.parametrize("price", ["true", "[1]", "inf", '"much"'])
def test_a_price_in_a_file_is_an_amount(tmp_path, price):
    file = tmp_path / "c.toml"
    file.write_text(f"[prices]\ninput = {price}\n")
    with pytest.raises(NodeMisconfigured, match=rf"prices\.input \(from {file}\)"):
        load_settings(config=file)


def test_a_small_price_is_not_lost_in_its_exponent(tmp_path):
    (tmp_path / "c.toml").write_text("[prices]\ninput = 0.00001\n")
    assert load_settings(config=tmp_path / "c.toml").prices.input == OCTO // 100_000


def test_a_slip_in_a_file_is_no_setting_and_the_right_one_is_named(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[api]\nprot = 1\n")
    with pytest.raises(NodeMisconfigured, match=rf"api\.prot \(from {file}\) is no setting\. Did you mean api\.port"):
        load_settings(config=file)


def test_a_strange_variable_is_noted_and_stops_nothing(monkeypatch):
    monkeypatch.setenv("OCTO_API_PORT", "sesame")
    monkeypatch.setenv("OCTO_CONFIG", "")
    (note,) = load_settings().notes
    assert note == "OCTO_API_PORT is no setting; did you mean OCTO_API__PORT?"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.toml", "a = "),
        ("c.yaml", "a: [1"),
        ("c.yaml", "- 1"),
        ("c.yaml", "!!python/object/apply:os.getcwd []"),
        ("c.json", "{"),
        ("c.json", "[1]"),
        ("c.json", "[" * 100_000),
        ("c.ini", "a=1"),
        ("c.toml", "#" * 2_000_000),
        ("c.toml", "\xff"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(NodeMisconfigured, match=name):
        load_settings(config=tmp_path / name)


def test_a_named_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(NodeMisconfigured, match=r"missing\.toml cannot be read"):
        load_settings(config=tmp_path / "missing.toml")


def test_two_files_in_the_data_folder_are_one_too_many(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTO_DATA_DIR", str(tmp_path))
    for name in ("config.toml", "config.json"):
        (tmp_path / name).write_text("")
    with pytest.raises(NodeMisconfigured, match=r"config\.toml and config\.json"):
        load_settings()


def test_a_file_in_the_data_folder_cannot_move_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTO_DATA_DIR", str(tmp_path))
    (tmp_path / "config.toml").write_text("data_dir = '/elsewhere'")
    with pytest.raises(NodeMisconfigured, match="data_dir is set in"):
        load_settings()
    assert load_settings(config=tmp_path / "config.toml").data_dir == tmp_path, "the environment beats the file"


def test_a_relative_folder_becomes_whole(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_settings(overrides={"data_dir": "here"}).data_dir == tmp_path / "here"


def test_a_deposit_over_the_cap_is_refused():
    with pytest.raises(NodeMisconfigured, match=r"payment\.deposit is 20 OCTO, payment\.deposit_cap is 10 OCTO"):
        load_settings(overrides={"payment.deposit": "20"})


# ---- secrets -------------------------------------------------------------------------------------


def test_the_password_is_nowhere_to_be_seen(monkeypatch, capsys):
    monkeypatch.setenv("OCTO_WALLET_PASSWORD", "open-sesame")
    settings = load_settings()
    assert wallet_password(settings) == "open-sesame"
    print(settings, repr(settings), explain(settings), settings.model_dump())
    assert "open-sesame" not in capsys.readouterr().out
    assert ("wallet_password", "(hidden)", "OCTO_WALLET_PASSWORD") in explain(settings)


@pytest.mark.parametrize(
    "content",
    ["wallet_password = ['open-sesame']", "wallet_password = 'open-sesame\n", "wallet_passwort = 'open-sesame'"],
)
def test_no_error_quotes_a_secret(tmp_path, content):
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(NodeMisconfigured) as caught:
        load_settings(config=file)
    assert "sesame" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_error_quotes_a_secret_in_yaml(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("wallet_password: 'open-sesame\n  : [")
    with pytest.raises(NodeMisconfigured) as caught:
        load_settings(config=file)
    assert "sesame" not in str(caught.value)


def test_a_variable_that_is_no_json_is_not_quoted(monkeypatch):
    monkeypatch.setenv("OCTO_API", '{"sesame')
    with pytest.raises(NodeMisconfigured, match="two underscores") as caught:
        load_settings()
    assert "sesame" not in str(caught.value)


def test_a_password_in_a_file_that_others_may_read_is_refused(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("wallet_password = 'open-sesame'")
    file.chmod(0o644)
    with pytest.raises(NodeMisconfigured, match="chmod 600"):
        load_settings(config=file)
    file.chmod(0o600)
    assert wallet_password(load_settings(config=file)) == "open-sesame"


def test_a_password_may_lie_in_a_file_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "pw").write_text("open sesame\n")
    monkeypatch.setenv("OCTO_WALLET_PASSWORD_FILE", "~/pw")
    assert wallet_password(load_settings()) == "open sesame"
    (tmp_path / "pw").unlink()
    with pytest.raises(NodeMisconfigured, match="wallet_password_file"):
        wallet_password(load_settings())
    monkeypatch.setenv("OCTO_WALLET_PASSWORD", "x")
    with pytest.raises(NodeMisconfigured, match="both set"):
        load_settings()


def test_without_a_password_there_is_none():
    assert wallet_password(load_settings()) is None


# ---- ports and hosts -----------------------------------------------------------------------------


def test_a_second_node_on_one_machine_finds_other_ports_unless_they_were_named():
    assert Settings().api_ports() == (8080, 0)
    assert load_settings(overrides={"api.port": 8080}).api_ports() == (8080,)
    assert Settings(api=Api(host="::1")).api_ports() == (8080, 0)
    assert Settings().listen_choices() == (("/ip4/0.0.0.0/tcp/4001",), ("/ip4/0.0.0.0/tcp/0",))
    assert Settings(mesh=Mesh(listen=("/ip4/0.0.0.0/tcp/4001",))).listen_choices() == (("/ip4/0.0.0.0/tcp/4001",),)


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        (["/ip4/0.0.0.0/tcp/1"], "0.0.0.0"),
        (["/ip6/::1/tcp/1"], "::1"),
        (["/dns4/a/tcp/1"], "127.0.0.1"),
        ([], "127.0.0.1"),
    ],
)
def test_content_is_served_where_the_mesh_listens(listen, host):
    assert Settings(mesh=Mesh(listen=tuple(listen))).content_host() == host


def test_the_content_host_may_be_named():
    assert load_settings(overrides={"content.host": "192.0.2.9"}).content_host() == "192.0.2.9"


def test_a_home_is_found_from_any_folder(monkeypatch):
    monkeypatch.setenv("OCTO_DATA_DIR", "~/mine")
    assert load_settings().data_dir == Path("~/mine").expanduser()


def test_a_name_that_is_like_no_setting_gets_no_wild_guess(monkeypatch):
    monkeypatch.setenv("OCTO_ENGINE__NONSENSE", "1")
    with pytest.raises(NodeMisconfigured, match="is no setting") as caught:
        load_settings()
    assert caught.value.next_step == "`octo-node config check` lists them all."


def test_what_is_wrong_on_the_command_line_is_put_right_there():
    with pytest.raises(NodeMisconfigured, match="it should be less than or equal to 65535") as caught:
        load_settings(overrides={"api.port": 99999})
    assert caught.value.next_step == "Correct it on the command line."


def test_a_model_named_by_a_path_is_the_same_wherever_the_node_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(overrides={"model": "./m.gguf", "serve": ("../n", "default", "hf:a/b", "./x")})
    assert settings.model == str(tmp_path / "m.gguf")
    assert settings.serve == (str(tmp_path / ".." / "n"), "default", "hf:a/b", str(tmp_path / "x"))


def test_a_path_that_is_there_needs_no_dot_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "m").mkdir()
    (tmp_path / "default").mkdir()
    assert reference_here(".cache/m") == str(tmp_path / ".cache" / "m")
    assert [reference_here(name) for name in ("default", "own/other", "hf:a/b")] == ["default", "own/other", "hf:a/b"]
