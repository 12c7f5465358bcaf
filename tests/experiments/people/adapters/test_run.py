"""Rows of many persons are one program, persons who differ are learned, and a run is whole."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.people.adapters import hierarchy, run
from experiments.people.adapters.config import Config, check
from experiments.people.adapters.division import run_division
from experiments.people.adapters.hierarchy import Levels
from experiments.people.adapters.inputs import Answers, draw_followed, option_table
from experiments.people.adapters.programs import make_programs
from shatter import data, documents, ensembles, models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import load_frozen
from tests.experiments.people.test_people import made_up

CONFIG = Config(utility="mean", utility_scale=3.0, lora_r=2)


@pytest.fixture(scope="module")
def learner(make_model, tmp_path_factory):
    """Returns `(poll, model, programs)` on a random model of two blocks."""
    folder = tmp_path_factory.mktemp("model")
    make_model(folder / "tiny", 2)
    poll, model = made_up(), load_frozen(str(folder / "tiny"))
    options = [(" a", " b b b", " c"[: 2 * (n % 2)]) for n in range(len(poll.questions))]
    questions = [
        q._replace(options=tuple(filter(None, o)))
        for q, o in zip(poll.questions, options, strict=True)
    ]
    poll = poll._replace(questions=questions)
    table, valid = option_table(model, poll, max_length=16, file=folder / "hidden.npz")
    return poll, model, make_programs(CONFIG, model, table, valid)


def drawn_levels(anchor, num_persons=3):
    def draw(number, leaf, *, scale):
        noise = rng.normal(size=(*number, *leaf.shape))
        return jnp.asarray(np.asarray(leaf) + scale * noise, jnp.float32)

    rng = np.random.default_rng(0)
    level = lambda *number: jax.tree.map(lambda leaf: draw(number, leaf, scale=0.3), anchor)
    return Levels(level(), level(2), level(num_persons))


def whole_utilities(poll, model, own, question):
    """The utilities of a question's options by the whole model, with an adapter merged into it."""
    lifted = ensembles.whole_adapters(own, model.config.num_layers - 1)
    params = models.merge_lora(model.params, lifted, CONFIG.lora)
    found = []
    for option in poll.questions[question].options:
        row = data.Row(poll.questions[question].prompt, (option,), (0,))
        encoded, _ = data.encode_rows([row], model.tokenizer, max_length=16)
        batch = data.collate(encoded, np.arange(1), length=encoded[0].length, num_slots=1)
        logits = models.transformer(model.config).apply(
            params, batch.tokens[0], valid=batch.valid[0]
        )
        log_prob = documents.log_prob(logits, batch.tokens[0], batch.mask[0])
        found.append(float(CONFIG.utility_scale * log_prob[0] / batch.mask.sum()))
    return found


@pytest.mark.slow
def test_gathered_rows_are_those_of_a_loop_over_persons_whole_models(learner):
    poll, model, programs = learner
    levels = drawn_levels(programs.anchor)
    own = hierarchy.stacked(levels)
    owner, question = np.array([0, 3, 5, 3]), np.array([1, 0, 3, 7])
    found = programs.utilities(own, owner, question)
    assert programs.valid[question].sum(axis=1).tolist() == [3, 2, 3, 3]
    for row, (who, which) in enumerate(zip(owner, question, strict=True)):
        one = jax.tree.map(lambda leaf, who=who: leaf[who], own)
        expected = whole_utilities(poll, model, one, which)
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=2e-4)


@pytest.mark.slow
def test_persons_without_answers_end_at_their_group(learner):
    poll, _, programs = learner
    cells = np.nonzero(poll.counts.sum(axis=2) > 0)
    rows = Answers(cells[1], cells[0], poll.counts[cells].astype(np.float32))
    start = hierarchy.at_anchor(programs.anchor, 2)
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
    _, model, _ = learner
    poll = differing()
    table, valid = option_table(model, poll, max_length=16, file=tmp_path / "hidden.npz")
    config = dataclasses.replace(
        CONFIG,
        numbers_of_answers=(1, 6),
        max_persons=20,
        population_scales=(0.1,),
        group_ratios=(0.3,),
        person_scales=(0.03, 1.0),
        answers_per_question=100.0,
        num_steps=15,
        person_steps=15,
    )
    programs = make_programs(config, model, table, valid)
    followed = draw_followed(config, poll, 0)
    found, levels = run_division(config, poll, programs, followed, 0)
    assert found["scales/person_6"] == 1.0  # by the answers of others
    of_persons = jax.tree.leaves(levels.persons)[0]
    assert found["persons/number"] == len(followed.judged) == len(of_persons) == 20
    assert found["persons/log_loss_6"] < found["persons/log_loss_0"] - 0.15
    assert found["persons/log_loss_6"] < found["persons/group_loss_6"] - 0.15
    assert found["persons/log_loss_6"] < found["persons/log_loss_1"]


def test_differences_are_taken_division_by_division():
    one = {"adapters/kl": 0.2, "head/kl": 0.1, "adapters/group_kl": 0.3}
    one |= {"adapters/blind_group_kl": 0.5, "group_difference/group_kl": 0.6}
    one |= {"persons/log_loss_0": 0.9, "persons/log_loss_4": 0.8, "persons/group_loss_4": 0.85}
    one |= {"persons/blind_log_loss_0": 1.0, "head_persons/blind_log_loss_0": 0.7}
    one |= {"head_persons/log_loss_0": 0.6, "head_persons/log_loss_4": 0.4}
    twice = {name: 2 * value for name, value in one.items()}
    summary = run.summarise([one, twice])
    expected = {  # in the first division; twice as much in the second
        "adapters less head/kl": 0.1,
        "adapters less group_difference/group_kl": -0.3,
        "population less groups/group_kl": 0.2,
        "persons/gain_4": 0.1,
        "persons/own_gain_4": 0.05,
        "persons/gain_group": 0.1,
        "head_persons/gain_4": 0.2,
        "adapters less heads/log_loss_0": 0.3,
        "adapters less heads/log_loss_4": 0.4,
        "adapters less heads/blind_log_loss_0": 0.3,
    }
    for name, value in expected.items():
        assert summary[name]["mean"] == pytest.approx(1.5 * value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "pandalm"}, "unknown data set .pandalm.; .* survey_opinions"),
        ({"utility": "x"}, "utility"),
        ({"lora_r": 0}, "--lora_r must be at least 1"),
        ({"person_scales": ()}, "--person_scales must be positive"),
        ({"numbers_of_answers": (0,)}, "--numbers_of_answers must be numbers >= 0, the largest"),
        ({"numbers_of_answers": (-1, 4)}, "--numbers_of_answers must be numbers >= 0"),
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
    monkeypatch.setattr(run, "load_poll", lambda name, data_dir: differing())
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
    run.experiment(config)
    folder = tmp_path / "runs" / "polis"
    summary = json.loads((folder / "summary.json").read_text())
    gain = summary["persons/log_loss_0"]["mean"] - summary["persons/log_loss_2"]["mean"]
    assert summary["persons/gain_2"]["mean"] == pytest.approx(gain)
    # Heads are judged by the same persons, so that differences are of pairs.
    assert summary["persons/number"] == summary["head_persons/number"]
    less = summary["persons/log_loss_2"]["mean"] - summary["head_persons/log_loss_2"]["mean"]
    assert summary["adapters less heads/log_loss_2"]["mean"] == pytest.approx(less)
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
    run.experiment(config)
    assert json.loads((folder / "summary.json").read_text()) == summary
    monkeypatch.setattr(run, "run_division", None)
    run.experiment(config)
    assert json.loads((folder / "summary.json").read_text()) == summary
