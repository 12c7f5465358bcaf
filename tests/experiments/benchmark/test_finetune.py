"""The steps and the generation of `shatter`, TRL, transformers and PyTorch are the same."""

import csv
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import config, finetune, pinned, run

pytestmark = pytest.mark.slow  # whole runs of an experiment

TINY = config.Gpt2(
    width=8,
    num_pairs=3,
    length=8,
    prompt_length=3,
    num_layers=1,
    num_heads=2,
    vocab_size=11,
    max_length=8,
    num_samples=2,
    num_new_tokens=5,
)


@pytest.fixture(scope="module")
def params():
    """Weights that differ from the initial ones, so that biases and norms matter."""
    rng = np.random.default_rng(1)  # NumPy, because jax compiles a program for every shape
    spread = lambda leaf: jnp.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape), leaf.dtype)
    return jax.tree.map(spread, finetune.init(TINY, 0))


@pytest.fixture(scope="module")
def batch(params):
    return finetune.make_batch(TINY, params, 0)


def test_small_has_the_parameters_that_its_help_names():
    sizes = config.gpt2("small")
    shapes = jax.eval_shape(lambda: finetune.init(sizes, 0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 120_704


def test_a_batch_is_pairs_with_one_prompt(batch):
    chosen, rejected = np.split(np.asarray(batch.tokens), 2)
    np.testing.assert_array_equal(chosen[:, :3], rejected[:, :3])
    assert np.all(chosen[:, 3:-1] != finetune.EOS) and np.all(batch.tokens[:, -1] == finetune.EOS)
    assert not np.array_equal(chosen, rejected)
    np.testing.assert_array_equal(batch.mask, np.tile(np.arange(8) >= 3, (6, 1)))
    assert np.all(np.asarray(batch.ref_log_probs) < -1)


def test_losses_begin_where_they_should_and_fall(params, batch):
    dpo = finetune.first_losses(finetune.trainer(TINY, "dpo", params, batch))
    assert dpo[0] == pytest.approx(np.log(2), abs=1e-6)
    chosen, rejected = np.split(np.asarray(batch.ref_log_probs), 2)
    ilhf = finetune.first_losses(finetune.trainer(TINY, "ilhf", params, batch))
    assert ilhf[0] == pytest.approx(np.mean(np.logaddexp(0, rejected - chosen)), rel=1e-5)
    for losses in (dpo, ilhf):
        assert np.all(np.diff(losses) < 0)


@pytest.mark.parametrize("objective", finetune.OBJECTIVES)
def test_pytorch_takes_the_same_steps(objective, params, batch, monkeypatch):
    for package in ("torch", "transformers", "safetensors"):
        pytest.importorskip(package)
    from experiments.benchmark import peers

    monkeypatch.setattr(finetune, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(peers, "LEARNING_RATE", 1e-2)
    ours = finetune.first_losses(finetune.trainer(TINY, objective, params, batch))
    theirs = finetune.first_losses(peers.torch_trainer(TINY, objective, params, batch))
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert ours[0] - ours[-1] > 0.01  # far more than they may differ


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "precompute"), [("dpo", True), ("dpo", False), ("ilhf", True)]
)
@pytest.mark.filterwarnings("default")  # what TRL and its dependencies warn of is theirs
def test_trl_takes_the_same_steps(objective, precompute, params, batch, monkeypatch):
    for package in (*pinned.PACKAGES["dpo"], "safetensors"):
        pytest.importorskip(package)
    from experiments.benchmark import peers

    monkeypatch.setattr(finetune, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(peers, "LEARNING_RATE", 1e-2)
    ours = finetune.first_losses(finetune.trainer(TINY, objective, params, batch))
    theirs = finetune.first_losses(
        peers.trl_trainer(TINY, objective, params, batch, 0, precompute=precompute)
    )
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert ours[0] - ours[-1] > 0.01


def test_transformers_writes_the_same(params):
    for package in ("torch", "transformers", "safetensors"):
        pytest.importorskip(package)
    from experiments.benchmark import peers

    sizes = finetune.with_room_to_generate(TINY)
    prompts = finetune.draw_prompts(sizes, 0)
    ours = finetune.greedy(sizes, params, prompts)
    assert ours.shape == (2, 8)
    np.testing.assert_array_equal(ours[:, :3], prompts)
    np.testing.assert_array_equal(peers.greedy(sizes, params, prompts), ours)


def test_there_is_room_for_what_is_written():
    sizes = config.gpt2("small")
    assert sizes.max_length == 64 and finetune.with_room_to_generate(sizes).max_length == 8 + 128


@pytest.mark.parametrize("work", ["dpo", "generation"])
def test_without_the_extras_ours_alone_is_measured(work, monkeypatch):
    monkeypatch.setattr(pinned, "missing", lambda work: ["trl"])
    assert pinned.num_ways(work) == 1
    spec = {"work": work, "seed": 0, "repeats": 2}
    answer = json.loads(json.dumps(pinned.answer(spec, TINY)))
    assert [way["name"] for way in answer["ways"]] == ["shatter"]
    assert np.shape(answer["seconds"]) == (2, 1)
    (note,) = answer["notes"]
    assert note.startswith("trl not installed, so their rows are left out: ")
    assert note.endswith("pip install 'shatter-lm[benchmark]'")
    if sys.platform == "linux":
        memory = pinned.answer(spec | {"only": "shatter"}, TINY)["memory"]
        assert 0 <= memory["growth"] < memory["process"]


def test_slices_of_a_vocabulary_are_measured_beside_whole_logits(monkeypatch):
    monkeypatch.setattr(pinned, "missing", lambda work: ["trl"])
    monkeypatch.setattr("shatter.factored.sizes.MULTIPLIED_OUT_UP_TO", 0)
    monkeypatch.setattr("shatter.factored.sizes.SLICE_SIZE", 100)
    asked = []

    def run_apart(spec):
        asked.append(spec["only"])
        return json.loads(json.dumps(pinned.answer(spec, TINY)))

    monkeypatch.setattr(pinned, "run_apart", run_apart)
    answer = pinned.measure("vocabulary", "vocabulary", 0, 2)
    names = ["shatter", "shatter, logits held whole"]
    assert asked == names == [way["name"] for way in answer["ways"]]
    assert np.shape(answer["seconds"]) == (2, 2)
    assert all(way["process_bytes"] > 0 < way["peak_bytes"] for way in answer["ways"])
    assert sum("the process grows by" in note for note in answer["notes"]) == 2
    with pytest.raises(ValueError, match=r"the losses of shatter, .*, found .* from shatter, log"):
        monkeypatch.setattr(pinned, "TOLERANCE", -1.0)
        pinned.measure("vocabulary", "vocabulary", 0, 1)


def test_other_losses_are_refused(monkeypatch):
    pytest.importorskip("torch")
    from experiments.benchmark import peers

    other = finetune.Trainer("PyTorch", lambda: 0.5, lambda loss: None)
    monkeypatch.setattr(pinned, "missing", lambda work: [])
    for name in ("torch_trainer", "trl_trainer"):
        monkeypatch.setattr(peers, name, lambda *args, **kwargs: other)
    with pytest.raises(ValueError, match=r"the losses of shatter, .*, found .* from PyTorch"):
        pinned._finetune(TINY, "dpo", 0, None, alone=False)


def test_a_process_is_pinned():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    program = "from experiments.benchmark import pinned; import os; pinned.pin(); " + (
        "print(sorted(os.sched_getaffinity(0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=pinned.ROOT, capture_output=True, text=True, check=True
    )
    expected = [max(os.sched_getaffinity(0))]
    if os.path.exists("/dev/nvidia0"):
        expected = sorted(os.sched_getaffinity(0))
    assert done.stdout.strip() == str(expected)


def test_the_experiment_shows_what_a_pinned_process_answers(tmp_path, capsys, monkeypatch):
    way = {"units": 2, "compile_seconds": None, "peak_bytes": 5_000_000, "process_bytes": 7 * 10**8}
    answer = {
        "ways": [way | {"name": "shatter", "compile_seconds": 4.0}, way | {"name": "TRL"}],
        "seconds": [[1.0, 3.0], [2.0, 4.0]],
        "notes": ["losses within 1e-06"],
    }
    asked = []
    measure = lambda *args: asked.append(args) or answer
    monkeypatch.setattr(pinned, "measure", measure)
    folder = tmp_path / "run"
    sections = ("finetune", "generation")
    run.experiment(
        config.Config(sections=sections, gpt2s=("wide",), repeats=2, seed=3, run_dir=str(folder))
    )
    assert asked == [(work, "wide", 3, 2) for work in ("dpo", "ilhf", "generation")]
    printed = capsys.readouterr().out
    assert "dpo, wide: losses within 1e-06" in printed and "2.50 [2.00, 3.00]" in printed
    summary = json.loads((folder / "summary.json").read_text())
    assert {row["process_bytes"] for row in summary["rows"]} == {7 * 10**8}
    with (folder / "metrics.csv").open() as file:
        found = {row["metric"] for row in csv.DictReader(file)}
    assert found == {"seconds", "compile_seconds", "peak_bytes", "process_bytes"}
