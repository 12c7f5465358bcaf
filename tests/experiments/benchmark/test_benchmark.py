import csv
import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import config, measure, others, run, ways, work
from experiments.benchmark.measure import Group
from experiments.benchmark.ways import Way
from shatter import documents
from shatter.cli.common.binary import UsageError

pytestmark = pytest.mark.slow  # whole runs of an experiment

every_work = pytest.mark.parametrize("name", config.WORKS)


def tiny(name: str) -> config.Sizes:
    return config.Sizes(
        name,  # type: ignore[arg-type]
        num_rounds=2,
        num_members=3,
        batch_size=4,
        learning_rate=0.05,
        prior_scale=0.5,
        vocab_size=3,
        max_length=2,
        num_queries=2,
        num_candidates=4,
        num_steps=2,
        width=8,
        num_heads=2,
    )


def stack_members(sizes: config.Sizes, key: jax.Array):
    return jax.vmap(work.language_model(sizes).init)(jax.random.split(key, sizes.num_members))


@pytest.mark.parametrize("name", ["tabular", pytest.param("transformer", marks=pytest.mark.slow)])
def test_every_way_gives_the_same_numbers(name: str, float64: None):
    size, frozen_key, run_key = tiny(name), *jax.random.split(jax.random.key(0))
    frozen = jax.jit(partial(work.draw_frozen, size))(frozen_key)
    keys = jax.random.split(run_key, 4)
    # Attention's softmax is float32 in any mode, and Adam follows even the rounding of gradients
    # that are 0 (an attention key's bias): a transformer's runs agree to less.
    tolerance = 1e-9 if name == "tabular" else 1e-3
    program = ways.compile_seed(size, frozen, run_key)

    def losses(way: Way) -> np.ndarray:
        return np.asarray(way.run())

    each = losses(ways.one_by_one(size, frozen, keys, program))
    assert each.shape == (4, size.num_rounds) and np.all(np.isfinite(each))
    assert len(np.unique(each)) == each.size  # the seeds and rounds differ
    for way in (
        ways.all_at_once(size, frozen, keys),
        ways.in_chunks(size, frozen, keys, 2),
    ):
        np.testing.assert_allclose(losses(way), each, rtol=tolerance, err_msg=way.name)
    for way in (
        ways.one_scan(size, frozen, keys[1], program),
        ways.python_loop(size, frozen, keys[1]),
    ):
        np.testing.assert_allclose(losses(way), each[1], rtol=tolerance, err_msg=way.name)


@every_work
def test_torch_gives_the_same_log_probs(name: str):
    torch = pytest.importorskip("torch")
    from experiments.benchmark import torch_models

    size = tiny(name)
    params = stack_members(size, jax.random.key(1))
    tokens, mask = documents.enumerate_documents(vocab_size=3, max_length=2, eos=work.EOS)
    lm = work.language_model(size)
    expected = jax.vmap(lambda p: documents.document_log_probs(lm, p, tokens, mask))(params)
    stacked = torch_models.stack_params(size, work.named_arrays(params))
    tokens = torch.tensor(np.asarray(tokens), dtype=torch.long)
    np.testing.assert_array_equal(torch_models.response_mask(tokens), mask)
    found = torch_models.score(
        torch_models.make_model(size), stacked, tokens, torch.tensor(np.asarray(mask))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@every_work
def test_torch_samples_the_law_it_scores(name: str):
    torch = pytest.importorskip("torch")
    from experiments.benchmark import torch_models

    size, count = tiny(name), 20_000
    model = torch_models.make_model(size)
    params = torch_models.stack_params(
        size, work.named_arrays(work.language_model(size).init(jax.random.key(2)))
    )
    tokens, mask = documents.enumerate_documents(vocab_size=3, max_length=2, eos=work.EOS)
    tokens, mask = (
        torch.tensor(np.asarray(tokens), dtype=torch.long),
        torch.tensor(np.asarray(mask)),
    )
    torch.manual_seed(0)
    drawn = model.sample(params, count)
    law = torch_models.score(model, params, tokens, mask)[0].exp().numpy()
    shares = (drawn[:, None] == tokens[None]).all(-1).float().mean(0).numpy()
    assert shares.sum() == pytest.approx(1.0)  # every draw is one of the documents
    np.testing.assert_allclose(shares, law, atol=5 * np.sqrt(0.25 / count))


@every_work
def test_torch_learns_the_same(name: str, float64: None):
    """With the same anchors, answers and weights, on all answers in every step."""
    torch = pytest.importorskip("torch")
    from experiments.benchmark import torch_loop, torch_models

    size = dataclasses.replace(tiny(name), batch_size=None, num_rounds=1)
    frozen = work.draw_frozen(size, jax.random.key(3))
    state, key = jax.jit(partial(work.start, size))(frozen, jax.random.key(4))
    queries, ask_key = jax.jit(partial(work.propose, size))(frozen, state, key, 0)
    answers = work.rate(frozen, ask_key, queries)
    after, loss = jax.jit(partial(work.learn, size))(frozen, state, answers)

    def tensor(array: jax.Array):
        array = np.asarray(array)
        return torch.tensor(array, dtype=torch.long if array.dtype.kind == "i" else None)

    stack = lambda params: torch_models.stack_params(size, work.named_arrays(params))
    learner = torch_loop.Learner(size, stack(state.anchors))
    torch_loss = learner.learn(
        torch_loop.Answers(
            tensor(queries.tokens),
            tensor(queries.mask),
            tensor(jnp.argmin(answers.ranks, axis=1)),
            tensor(after.store.member_weights),
        )
    )
    assert float(torch_loss) == pytest.approx(float(loss), rel=1e-5)
    # By what the members say, not by parameters: those of no effect follow rounding (see above).
    tokens, mask = documents.enumerate_documents(vocab_size=3, max_length=2, eos=work.EOS)
    found = torch_models.score(
        learner.model, learner.params, tensor(tokens), torch.tensor(np.asarray(mask))
    )
    params = after.members.params
    moved = lambda params: jax.vmap(
        lambda p: documents.document_log_probs(work.language_model(size), p, tokens, mask)
    )(params)
    np.testing.assert_allclose(found.detach(), moved(params), atol=1e-3)
    assert np.abs(moved(params) - moved(state.anchors)).max() > 0.02


def test_torch_infomax_is_ours():
    torch = pytest.importorskip("torch")
    from experiments.benchmark import torch_loop
    from shatter import exploration

    log_probs = jax.random.normal(jax.random.key(5), (4, 6, 5))
    valid = jnp.ones((6, 5), bool).at[:, 2].set(False)
    ours = jax.vmap(
        lambda log_probs, valid: exploration.infomax(jax.random.key(0), log_probs, valid=valid),
        in_axes=(1, 0),
    )(log_probs, valid)
    found = torch_loop.infomax(torch.tensor(np.asarray(log_probs)), torch.tensor(np.asarray(valid)))
    np.testing.assert_array_equal(np.sort(found), np.sort(ours))


def test_layers_looped_and_scanned_are_the_same():
    looped, scanned = others.layers(tiny("transformer"), depth=3)
    assert looped.name == "looped" and scanned.name == "scanned"
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), looped.run(), scanned.run()
    )
    assert looped.peak_bytes != scanned.peak_bytes  # two programs, not one twice


def test_ways_are_timed_in_turn():
    calls: list[str] = []
    pair = [Way(name, partial(calls.append, name), 1) for name in "ab"]
    seconds = measure.time_in_turn(pair, 3)
    assert "".join(calls) == "ababab"
    assert seconds.shape == (3, 2) and np.all(seconds >= 0)


def test_ratios_are_a_unit_and_within_a_repeat():
    group = Group("g", "round", [Way("a", lambda: None, 1), Way("b", lambda: None, 4)])
    # The machine halves its speed in the last repeat: the ratios do not notice.
    first, second = measure.summarise(group, np.asarray([[1.0, 8.0], [1.0, 12.0], [2.0, 16.0]]))
    assert first["ratio"] == first["ratio_low"] == first["ratio_high"] == 1.0
    assert (second["ratio"], second["ratio_low"], second["ratio_high"]) == (2.0, 2.0, 3.0)
    assert second["seconds_a_unit"] == 3.0


def test_a_way_without_memory_is_left_out():
    def exhausted() -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    def broken() -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    fits = Way("fits", lambda: None, 1)
    assert measure.warm_up([fits, Way("large", exhausted, 1)]) == ([fits], ["large"])
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        measure.warm_up([Way("broken", broken, 1)])


@pytest.mark.parametrize(
    "works", [(), pytest.param(("tabular",), marks=pytest.mark.slow)], ids=["others", "all"]
)
def test_the_experiment_writes_and_prints(works: tuple, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(others, "has_torch", lambda: False)
    folder = tmp_path / "run"
    run.experiment(
        config.Config(
            sections=("rounds", "seeds", "layers", "imports"),
            works=works,
            run_dir=str(folder),
            repeats=2,
            num_rounds=1,
            num_members=2,
            num_seeds=(3,),
            seeds_per_call=(2, 8),
            depths=(1,),
        )
    )
    printed = capsys.readouterr().out
    names = {"looped", "scanned", "import jax", "import shatter"}
    if works:
        names |= {"one jitted scan", "Python loop of jitted steps"}
        names |= {"one by one", "vmap", "lax.map, 2 at a time"}
    for name in names:
        assert name in printed
    assert "PyTorch is not installed" in printed
    assert "lax.map, 8" not in printed  # not below the number of seeds
    assert printed.index("minutes on 2 idle CPU cores") < printed.index("looped")
    assert "tensorflow_probability: no" in printed
    summary = json.loads((folder / "summary.json").read_text())
    assert not summary["imports_tensorflow_probability"]
    assert {row["way"] for row in summary["rows"]} == names
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == names
    assert {row["metric"] for row in rows} == {"seconds", "compile_seconds", "peak_bytes"}
    assert sum(row["metric"] == "seconds" for row in rows) == 2 * len(names)
    assert (folder / "benchmark.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sections": ("seeds", "speed")}, "unknown section 'speed'.*rounds, seeds, layers"),
        ({"works": ("lstm",)}, "unknown work 'lstm'.*tabular, transformer"),
        ({"gpt2s": ("gpt3",)}, "unknown gpt2 'gpt3'.*small, wide, gpt2"),
        ({"repeats": 0}, "--repeats must be at least 1, found 0"),
        ({"num_seeds": (8, 0)}, "--num_seeds must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, message: str, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(UsageError, match=message):
        run.experiment(config.Config(run_dir=str(folder), **change))
    assert not folder.exists()


def test_plan_costs_grow_with_the_work():
    cheap = config.Config(works=("tabular",), sections=("seeds",), num_seeds=(8,))
    dear = dataclasses.replace(cheap, num_seeds=(64,))
    assert sum(part.seconds for part in run.plan(dear)) > sum(p.seconds for p in run.plan(cheap))
