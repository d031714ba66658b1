"""One line an event, and no secret in any of them."""

import json
import logging

import pytest
import structlog

from node.logs import open_logs

KEY = "octo-" + "Ab3_-" * 8


@pytest.mark.parametrize("kind", ["text", "json"])
def test_an_event_is_one_line(tmp_path, kind):
    with open_logs(format=kind, file=tmp_path / "node.log"):
        structlog.get_logger().info("offer_taken", peer="12D3KooW", tokens=5, reason="two\nlines")
    (line,) = (tmp_path / "node.log").read_text().splitlines()
    if kind == "json":
        assert json.loads(line)["tokens"] == 5
    else:
        assert "level=info event=offer_taken peer=12D3KooW tokens=5" in line
    assert (tmp_path / "node.log").stat().st_mode & 0o777 == 0o600


def test_secrets_are_struck_out_wherever_they_stand(tmp_path):
    with open_logs(file=tmp_path / "node.log"):
        log = structlog.get_logger()
        log.info("x", wallet_password="sesame", api_key="sesame", prompt="sesame", token="sesame", peer_seed=b"sesame")
        log.info("said " + KEY, headers={"Authorization": "Bearer sesame"}, url=f"http://h/?k={KEY}", listed=[KEY])
        logging.getLogger("aiohttp").warning("refused %s", KEY)
        try:
            raise ValueError(KEY)
        except ValueError:
            log.exception("broke")
    text = (tmp_path / "node.log").read_text()
    assert "sesame" not in text
    assert KEY not in text
    assert text.count("(hidden)") >= 9


def test_what_only_sounds_secret_stays(tmp_path):
    with open_logs(file=tmp_path / "node.log"):
        structlog.get_logger().info("x", tokens_in=5, token=17, first_token_ms=9, cid=b"\xab\xcd")
    text = (tmp_path / "node.log").read_text()
    assert "tokens_in=5 token=17 first_token_ms=9 cid=abcd" in text


def test_levels_hold_for_us_and_libraries_are_quieter(tmp_path):
    with open_logs(level="warning", file=tmp_path / "node.log"):
        structlog.get_logger().info("unheard")
    with open_logs(level="info", file=tmp_path / "node.log"):
        logging.getLogger("multiaddr.codecs").info("chatter")
        logging.getLogger("multiaddr.codecs").warning("trouble")
        structlog.get_logger().info("heard")
    text = (tmp_path / "node.log").read_text()
    assert "unheard" not in text
    assert "chatter" not in text
    assert "trouble" in text
    assert "event=heard" in text


def test_a_flood_in_a_value_does_not_fill_the_disk(tmp_path):
    with open_logs(file=tmp_path / "node.log"):
        structlog.get_logger().info("x", message="y" * 1_000_000)
    assert (tmp_path / "node.log").stat().st_size < 5_000


def test_logging_is_as_before_when_it_ends(tmp_path, capsys):
    before = logging.getLogger().handlers[:]
    with open_logs():
        structlog.get_logger().info("to_stderr")
    assert logging.getLogger().handlers == before
    assert "event=to_stderr" in capsys.readouterr().err
