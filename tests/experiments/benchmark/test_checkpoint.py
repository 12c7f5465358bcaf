"""The ways of the section checkpoint do the same work, in shatter and in the other libraries."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import checkpoint, checkpoint_ways, config, finetune, lora, pinned, run
from shatter import models
from shatter.cli.common.binary import UsageError
from tests.models.tiny import llama

pytestmark = pytest.mark.slow  # whole runs of an experiment

LLAMA = llama(
    vocab_size=131,
    max_length=32,
    width=8,
    num_layers=9,  # deep enough to be scanned
    num_heads=4,
    num_kv_heads=2,
    mlp_width=12,
    rope=models.Rope(theta=100.0),
    tied=True,
    bos=1,
    eos=(2,),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a user has it, with weights of which every one matters."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(models.transformer(LLAMA).init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32), shapes
    )
    path = tmp_path_factory.mktemp("model")
    models.save_pretrained(path, LLAMA, params)
    return str(path)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(checkpoint_ways, "TEXTS", 4)
    monkeypatch.setattr(checkpoint_ways, "TEXTS_AT_ONCE", 2)
    monkeypatch.setattr(checkpoint_ways, "ROWS", 16)


def need(work: str) -> None:
    for package in checkpoint.WORKS[work].packages:
        pytest.importorskip(package)


@pytest.mark.parametrize("work", checkpoint.WORKS)
@pytest.mark.filterwarnings("default")  # what TRL and its dependencies warn of is theirs
def test_all_ways_do_the_same_work(work, folder):
    need(work)
    spec = {"work": work, "folder": folder, "cores": 1, "seed": 0, "repeats": 2}
    answer = json.loads(json.dumps(checkpoint.answer(spec)))
    assert len(answer["ways"]) == checkpoint.num_ways(work) == checkpoint.WORKS[work].num_ways[0]
    assert np.shape(answer["seconds"]) == (2, len(answer["ways"]))
    assert answer["notes"] and not any("not installed" in note for note in answer["notes"])


@pytest.mark.parametrize("work", ["score", "LoRA DPO, last quarter", "8 adapters"])
def test_without_the_extras_ours_alone_is_measured(work, folder, monkeypatch):
    monkeypatch.setattr(pinned, "absent", lambda packages: ["peft"])
    spec = {"work": work, "folder": folder, "cores": 1, "seed": 0, "repeats": 1}
    answer = checkpoint.answer(spec)
    assert len(answer["ways"]) == checkpoint.num_ways(work) == checkpoint.WORKS[work].num_ways[1]
    assert all(way["name"].startswith("shatter") for way in answer["ways"])
    assert answer["notes"][-1].startswith("peft not installed, so their rows are left out: ")
    if sys.platform == "linux":
        memory = checkpoint.answer(spec | {"only": answer["ways"][0]["name"]})["memory"]
        assert 0 <= memory["growth"] < memory["process"]


def test_the_last_quarter_trains_as_in_the_whole_model(folder):
    """Its losses are those of a whole model whose lower blocks have adapters of zero."""
    sizes = checkpoint.sizes(folder)
    params = finetune.init(sizes, 0)
    batch = finetune.make_batch(sizes, params, 0)
    layer = lora.last_quarter(sizes)
    assert layer == 7
    upper = lora.draw(sizes, params, 0, layer=layer)
    found = finetune.first_losses(lora.trainer(sizes, params, batch, upper))
    assert found[0] == pytest.approx(np.log(2), abs=1e-5) and np.all(np.diff(found) < 0)
    pad = lambda leaf: jnp.pad(leaf, ((layer, 0), (0, 0), (0, 0)))
    whole = upper._replace(layer=0, adapters=jax.tree.map(pad, upper.adapters))
    # Where a is zero, b gets no gradient, and a none where b is zero: the blocks below stay.
    others = finetune.first_losses(lora.trainer(sizes, params, batch, whole))
    np.testing.assert_allclose(found, others, atol=1e-5)


def test_members_learn_as_each_of_them_alone(folder):
    sizes = checkpoint.sizes(folder)
    params = finetune.init(sizes, 0)
    batch = finetune.make_batch(sizes, params, 0)
    adapted = lora.draw_members(sizes, params, 0, 3)
    steps = lambda trainer: [trainer.step() for _ in range(3)]
    found = np.array(steps(lora.members_trainer(sizes, params, batch, adapted, "all")))
    assert found.shape == (3, 3) and np.ptp(found[0]) > 1e-3 and np.all(np.diff(found, axis=0) < 0)
    for i in range(3):
        own = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], adapted.adapters)
        alone = lora.members_trainer(sizes, params, batch, adapted._replace(adapters=own), "one")
        np.testing.assert_allclose(np.ravel(steps(alone)), found[:, i], atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_one_process_answers_for_all_works_on_a_core(folder):
    """A later work does not start anew, and a failure shows the end of the messages."""
    worker = checkpoint._start(1)
    spec = {"folder": folder, "cores": 1, "seed": 0, "repeats": 1, "only": "shatter"}
    for work in ("matrix product", "sample 1"):
        answer = checkpoint._ask(worker, spec | {"work": work})
        assert [way["name"] for way in answer["ways"]] == ["shatter"]
        assert np.shape(answer["seconds"]) == (1, 1) and answer["memory"]["process"] > 0
    with pytest.raises(RuntimeError, match=r"measuring .*'unknown'.* failed:\n(.*\n)*.*KeyError"):
        checkpoint._ask(worker, spec | {"work": "unknown"})
    checkpoint._end(worker)
    assert worker.process.returncode == 1


def test_another_number_of_cores_ends_the_process_before():
    workers = [checkpoint._worker(cores) for cores in (1, 1, 2)]
    assert workers[0] is workers[1] and workers[0].process.returncode == 0
    assert list(checkpoint._workers) == [2] and workers[2].process.poll() is None
    checkpoint._end(checkpoint._workers.pop(2))
    assert workers[2].process.returncode == 0


def test_imports_are_measured_on_one_core():
    places = checkpoint.places()
    assert [cores for work, cores in places if work == "import"] == [1]
    assert {work for work, cores in places if cores == 1} == set(checkpoint.WORKS)


def test_other_scores_are_refused():
    with pytest.raises(ValueError, match=r"expected the scores of all ways to agree, found 0.5"):
        checkpoint_ways._require(False, "scores", 0.5)


def test_the_section_needs_a_folder(tmp_path):
    for path in (None, str(tmp_path / "absent")):
        with pytest.raises(UsageError, match=r"needs --checkpoint, .*, found (None|.*absent)"):
            run.check(config.Config(sections=("checkpoint",), checkpoint=path))


def test_the_experiment_measures_every_work_on_one_core_and_on_two(tmp_path, capsys, monkeypatch):
    way = {"name": "shatter", "units": 2, "compile_seconds": 1.0}
    fields = way | {"peak_bytes": None, "process_bytes": None}
    asked = []
    answer = {"ways": [fields], "seconds": [[1.0]], "notes": ["checked"]}
    monkeypatch.setattr(checkpoint, "measure", lambda *args: asked.append(args) or answer)
    monkeypatch.setattr(checkpoint, "places", lambda: [("score", 1), ("score", 2)])
    folder = tmp_path / "run"
    settings = {"sections": ("checkpoint",), "checkpoint": str(tmp_path), "repeats": 1, "seed": 3}
    run.experiment(config.Config(**settings, run_dir=str(folder)))
    assert asked == [("score", str(tmp_path), cores, 3, 1) for cores in (1, 2)]
    assert "score, 2 cores: checked" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["group"] for row in summary["rows"]] == ["score, 1 core", "score, 2 cores"]
