"""Rows of many persons are one program, persons who differ are learned, and a run is whole."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.people import adapted, adapters, hierarchy
from experiments.people.adapted import Adapting, Answers
from experiments.people.adapted_process import Search, run_division
from experiments.people.adapters_config import Config, check
from experiments.people.hierarchy import Levels
from shatter import data, documents, ensembles, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import load_frozen
from tests.experiments.people.test_people import made_up

CONFIG = Config(utility="mean", utility_scale=3.0, lora_r=2)
ADAPTING = Adapting(models.LoraConfig(2, 2.0, ("mlp_out",)), "mean", 3.0)


@pytest.fixture(scope="module")
def learner(make_model, tmp_path_factory):
    """Returns `(poll, model, adapting, programs)` on a random model of two blocks."""
    folder = tmp_path_factory.mktemp("model")
    make_model(folder / "tiny", 2)
    poll, model, adapting = made_up(), load_frozen(str(folder / "tiny")), ADAPTING
    options = [(" a", " b b b", " c"[: 2 * (n % 2)]) for n in range(len(poll.questions))]
    questions = [
        q._replace(options=tuple(filter(None, o)))
        for q, o in zip(poll.questions, options, strict=True)
    ]
    poll = poll._replace(questions=questions)
    table, valid = adapted.option_table(model, poll, max_length=16, file=folder / "hidden.npz")
    return poll, model, adapting, adapted.make_programs(model, adapting, table, valid, seed=0)


def drawn_levels(anchor, num_persons=3):
    def draw(number, leaf, *, scale):
        noise = rng.normal(size=(*number, *leaf.shape))
        return jnp.asarray(np.asarray(leaf) + scale * noise, jnp.float32)

    rng = np.random.default_rng(0)
    level = lambda *number: jax.tree.map(lambda leaf: draw(number, leaf, scale=0.3), anchor)
    return Levels(level(), level(2), level(num_persons))


def whole_utilities(poll, model, adapting, own, question):
    """The utilities of a question's options by the whole model, with an adapter merged into it."""
    lifted = ensembles.whole_adapters(own, model.config.num_layers - 1)
    params = models.merge_lora(model.params, lifted, adapting.lora)
    found = []
    for option in poll.questions[question].options:
        row = data.Row(poll.questions[question].prompt, (option,), (0,))
        encoded, _ = data.encode_rows([row], model.tokenizer, max_length=16)
        batch = data.collate(encoded, np.arange(1), length=encoded[0].length, num_slots=1)
        logits = models.transformer(model.config).apply(
            params, batch.tokens[0], valid=batch.valid[0]
        )
        log_prob = documents.log_prob(logits, batch.tokens[0], batch.mask[0])
        found.append(float(adapting.utility_scale * log_prob[0] / batch.mask.sum()))
    return found


@pytest.mark.slow
def test_gathered_rows_are_those_of_a_loop_over_persons_whole_models(learner):
    poll, model, adapting, programs = learner
    levels = drawn_levels(programs.anchor)
    own = hierarchy.stacked(levels)
    owner, question = np.array([0, 3, 5, 3]), np.array([1, 0, 3, 7])
    found = programs.utilities(own, owner, question)
    assert programs.valid[question].sum(axis=1).tolist() == [3, 2, 3, 3]
    for row, (who, which) in enumerate(zip(owner, question, strict=True)):
        one = jax.tree.map(lambda leaf, who=who: leaf[who], own)
        expected = whole_utilities(poll, model, adapting, one, which)
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=2e-4)


@pytest.mark.slow
def test_persons_without_answers_end_at_their_group(learner):
    poll, _, _, programs = learner
    cells = np.nonzero(poll.counts.sum(axis=2) > 0)
    rows = Answers(cells[1], cells[0], poll.counts[cells].astype(np.float32))
    start = hierarchy.at_anchor(programs.anchor, 2, 0)
    levels = programs.fit(rows, np.array([2, 0, 1]), (0.3, 0.3, 0.3), start, 5)
    for person, centre in ((0, levels.groups), (2, levels.groups), (1, None)):
        of_group = lambda leaf, person=person: leaf[(2, 0, 1)[person] - 1]
        expected = levels.population if centre is None else jax.tree.map(of_group, centre)
        for own, leaf in zip(
            jax.tree.leaves(levels.persons), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_array_equal(own[person], leaf)


def differing():
    """Returns a poll whose persons differ, whatever their group: half want a, half want b."""
    poll = made_up(num_people=60)
    answers = poll.answers.copy()
    counts = np.zeros_like(poll.counts)
    for row in answers:
        group = 1 + row[0] // 2 % 2
        counts[row[1], [0, group], row[2]] += 1
    groups = 1 + np.arange(60) // 2 % 2
    return poll._replace(counts=counts, answers=answers, person_groups=groups)


@pytest.mark.slow
def test_persons_who_differ_are_learned_better_with_adapters_of_their_own(learner, tmp_path):
    _, model, adapting, _ = learner
    poll = differing()
    table, valid = adapted.option_table(model, poll, max_length=16, file=tmp_path / "hidden.npz")
    programs = adapted.make_programs(model, adapting, table, valid, seed=0)
    search = Search((0.1,), (0.3,), (0.03, 1.0), 100.0, 15, 15)
    found, levels, judged = run_division(poll, programs, search, (1, 6), 20, 0)
    assert found["scales/person"] == 1.0  # by the answers of others
    assert (
        found["persons/number"]
        == len(judged)
        == len(levels.persons["blocks"]["mlp_out"]["adapters"]["mlp_out"]["a"])
    )
    assert found["persons/log_loss_6"] < found["persons/log_loss_0"] - 0.15
    assert found["persons/log_loss_6"] < found["persons/group_loss_6"] - 0.15
    assert found["persons/log_loss_6"] < found["persons/log_loss_1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "pandalm"}, "unknown data set .pandalm.; .* survey_opinions"),
        ({"utility": "x"}, "utility"),
        ({"lora_r": 0}, "--lora_r must be at least 1"),
        ({"person_scales": ()}, "--person_scales must be at least one number above 0"),
        ({"numbers_of_answers": (0,)}, "--numbers_of_answers must be numbers, the largest above 0"),
        ({"answers_per_question": 0.0}, "--answers_per_question must be"),
    ],
)
def test_bad_flags(changes, message):
    with pytest.raises(UsageError, match=message):
        check(dataclasses.replace(Config(), **changes))
    check(Config())


@pytest.mark.slow
def test_a_tiny_run(make_model, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(adapters, "load_poll", lambda name, data_dir: differing())
    make_model(tmp_path / "tiny", 2)
    config = dataclasses.replace(
        CONFIG,
        dataset="polis",
        model_name_or_path=str(tmp_path / "tiny"),
        run_dir=str(tmp_path / "runs"),
        num_seeds=2,
        max_length=16,
        max_persons=5,
        numbers_of_answers=(2,),
        population_scales=(0.1,),
        group_ratios=(0.3,),
        person_scales=(0.3,),
        num_steps=5,
        person_steps=5,
        save=True,
    )
    adapters.experiment(config)
    folder = tmp_path / "runs" / "polis"
    summary = json.loads((folder / "summary.json").read_text())
    gain = summary["persons/log_loss_0"]["mean"] - summary["persons/log_loss_2"]["mean"]
    assert summary["persons/gain_2"]["mean"] == pytest.approx(gain)
    assert "Polis" in capsys.readouterr().out
    # What was saved is read as adapters, and a person's are not the population's.
    model, names = (
        load_frozen(str(tmp_path / "tiny")),
        json.loads((folder / "adapters/names.json").read_text()),
    )
    loaded = {
        name: models.load_lora(folder / "adapters" / name, model.config)[0]
        for name in ("population", *names["group_of"])
    }
    assert len(names["group_of"]) == 5 and set(names["groups"]) == {"group1", "group2"}
    first, *others = (jax.tree.leaves(one)[1] for one in loaded.values())
    assert first.shape[0] == 2 and not jnp.any(first[0])  # adapters of the last block alone
    assert all(jnp.abs(first[1] - other[1]).max() > 1e-6 for other in others)
    # A run that was killed goes on, and what is complete is only read.
    (folder / "seeds" / "seed1.json").unlink()
    adapters.experiment(config)
    assert json.loads((folder / "summary.json").read_text()) == summary
    monkeypatch.setattr(adapters, "run_division", None)
    adapters.experiment(config)
    assert json.loads((folder / "summary.json").read_text()) == summary
