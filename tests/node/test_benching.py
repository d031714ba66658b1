"""`octo-node bench hardware`: the story on a real engine, and the command as a user runs it."""

from __future__ import annotations

import json
import shutil

import pytest

from inference.models.draft import Wishes
from inference.models.library import import_model, models_in
from market.errors import RequestInvalid
from node.benching import bench_hardware, formats_of
from node.measurements import load_entries, setup_for
from node.settings import EngineSettings, Settings
from tests.node.bench_kit import OWNER, Q4_0, octo, store

__all__ = ["store"]


@pytest.mark.model
async def test_the_figures_are_kept_and_the_tuners_choice_too(store, tmp_path):
    """A budget of nothing: the default is opened, nothing else is tried, and it stays."""
    model = await import_model(store, {"a.gguf": Q4_0}, OWNER, wishes=Wishes(name="Otter"))
    settings = Settings(data_dir=tmp_path, engine=EngineSettings(workers=1, slots=1, context=128))
    heard = []
    entry, tuning = await bench_hardware(settings, store, model, tune_s=0.0, told=lambda what, _: heard.append(what))
    assert load_entries(tmp_path) == {entry.key: entry}
    assert list(entry.measured.tokens_per_s) == ["1"]
    assert min(entry.measured.tokens_per_s.values()) > 1
    assert entry.measured.memory_bytes > 50 << 20
    assert entry.engine.endswith("/q4_0")
    assert (tuning.best.workers, tuning.best.slots, tuning.trials) == (1, 1, ())
    assert entry.tuned == tuning.best == entry.setup
    assert setup_for(EngineSettings(), entry, model=entry.model, cores=8).workers == 1
    assert "measuring" in heard


async def test_a_model_that_writes_no_text_is_refused(store, tmp_path):
    header = b'{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}'
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    model = await import_model(store, {"w.safetensors": path}, OWNER)
    with pytest.raises(RequestInvalid, match="only GGUF"):
        await bench_hardware(Settings(data_dir=tmp_path), store, model)


@pytest.mark.model
async def test_formats_of_one_model_are_parent_children_and_siblings(store):
    from inference.models.derived import Derivation, derive_model

    async def child(parent, name):
        made = Derivation(parent=parent, name=name, version="1.0.0", quantisation="Q4_0", new={})
        return await derive_model(store, made, OWNER, public=False)

    parent = await import_model(store, {"a.gguf": Q4_0}, OWNER, wishes=Wishes(name="Otter"))
    stranger = await import_model(store, {"a.gguf": Q4_0}, OWNER, wishes=Wishes(name="Mouse"))
    first, second = await child(parent, "First"), await child(parent, "Second")
    here = await models_in(store)
    assert stranger in here
    assert set(formats_of(parent, here)) == {first, second}
    assert set(formats_of(first, here)) == {parent, second}
    assert formats_of(stranger, here) == []


@pytest.mark.model
@pytest.mark.processes
@pytest.mark.timeout(900)
def test_the_command_prints_json_and_nothing_else(tmp_path):
    small = {"ENGINE__WORKERS": "1", "ENGINE__SLOTS": "1", "ENGINE__CONTEXT": "128"}
    words = ("bench", "hardware", "--model", str(Q4_0), "--json")
    told = json.loads(octo(tmp_path / "a", *words, timeout_s=800, **small))
    assert (list(told["measured"]["tokens_per_s"]), list(told["measured"]["first_token_ms"])) == (["1"], ["64"])
    assert told["tuning"] is None
    assert (tmp_path / "a" / "measurements.json").exists()
    assert "hardware_measured" in (tmp_path / "a" / "node.log").read_text()
    shutil.rmtree(tmp_path / "a")
