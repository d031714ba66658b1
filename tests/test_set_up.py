"""The set-up scripts: what of a user's pip configuration counts, and how a step reports itself."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def load(name: str) -> ModuleType:
    """A script by file: scripts/ is no package, and `python scripts/set_up.py` imports its neighbours by name."""
    spec = importlib.util.spec_from_file_location(f"octo_scripts_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pip_settings, progress = load("pip_settings"), load("progress")


def test_settings_that_change_what_is_installed_are_left_out() -> None:
    listing = "\n".join(
        [
            "global.cert='/etc/ssl/ca.crt'",
            "global.extra-index-url='https://example.org/simple'",
            "global.find-links='/opt/wheels'",
            "install.constraint='pins.txt'",
            "install.no-binary=':all:'",
            "global.no-index='true'",
            ":env:.proxy='http://proxy.example.org:3128'",
        ]
    )
    assert pip_settings.reach_settings(listing) == {
        "PIP_CERT": "/etc/ssl/ca.crt",
        "PIP_PROXY": "http://proxy.example.org:3128",
    }


def test_environment_outranks_files() -> None:
    listing = ":env:.index-url='https://b.example.org'\nglobal.index-url='https://a.example.org'"
    assert pip_settings.reach_settings(listing) == {"PIP_INDEX_URL": "https://b.example.org"}


def test_line_that_is_no_setting_is_skipped() -> None:
    assert pip_settings.reach_settings("warning: x\nglobal.cert=not a literal\nglobal.cert=''") == {}


def test_pip_and_uv_variables_do_not_pass() -> None:
    dirty = {"PATH": "/bin", "PIP_FIND_LINKS": "/opt", "UV_INDEX": "x", "PYTHONPATH": "y", "SSL_CERT_FILE": "c"}
    assert pip_settings.clean_environment(dirty, {"PIP_CERT": "c"}) == {
        "PATH": "/bin",
        "SSL_CERT_FILE": "c",
        "PIP_CERT": "c",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
    }


def test_step_keeps_its_output_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "step.log"
    progress.run_step("Counting", [sys.executable, "-c", "print(41 + 1)"], log=log, env=os.environ, usually="1 s")
    assert log.read_text() == "42\n"
    assert "Counting (usually 1 s)" in capsys.readouterr().out


def test_failed_step_shows_the_end_of_its_output(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no such header'); sys.exit(3)"]
    with pytest.raises(progress.StepFailed, match=r"no such header(.|\n)*exit code 3"):
        progress.run_step("Compiling", command, log=tmp_path / "log", env=os.environ)


def test_pip_output_becomes_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    lines = load("set_up")._Lines(159)
    assert lines("Collecting rich==15.0.0 (from -r lock.txt)") == "fetching rich, package 1 of about 159"
    assert lines("  [12/193] /usr/bin/c++ -c x.cpp") == "compiling llama.cpp, step 12 of 193"
    assert lines("  Building wheel for fastecdsa (pyproject.toml)") == "building fastecdsa"
    assert lines("  Created wheel") is None
