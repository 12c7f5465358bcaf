"""The pretrained setting: rewards by other roads, the value's cache and fit, laws, the run."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.search import run
from experiments.search.config import BEST_OF, OF_SETTING, TRAINED, Config, SettingName
from experiments.search.pretrained import arms
from experiments.search.pretrained.problem import Problem, agreement, out_of_reach
from experiments.search.pretrained.rewards import (
    NAMES,
    Rewards,
    Seen,
    of_samples,
    pooled,
    raw_reward,
    reward,
    scripted,
)
from experiments.search.pretrained.value import States, Value, fit_value, value_model
from experiments.search.pretrained.world import embeddings, sample, sentence_end, valid_tokens
from shatter import documents, evaluation
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import config as finetune
from shatter.cli.finetune.pretrained import load_model
from shatter.cli.finetune.reward_models import open_rewards
from shatter.cli.finetune.rewards import Completion
from shatter.models import load_tokenizer
from tests.experiments.search.worlds import load, tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory):
    """A world with a longer response, its arrays, random rewards and values, and samples."""
    world, fixed = load(folder, tmp_path_factory.mktemp("drawn"), max_length=5)
    keys = iter(jax.random.split(jax.random.key(1), 9))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    width, size = 2 * world.sizes.width, world.sizes.vocab_size
    rewards = Rewards(
        prompt_ids=jnp.array([2, 0]),  # the first is padded
        tastes=normal(len(world.words)),
        dislike=jnp.ones(()),
        feature_centre=normal(width),
        feature_width=1.0 + jnp.square(normal(width)),
        head=normal(width),
        centres=normal(2, 2),
        scales=jnp.array([2.0, 3.0]),
    )
    centre, spread = rewards.feature_centre, rewards.feature_width
    value = Value(centre, spread, normal(width), normal(width, 3), normal(4, size))
    problem = Problem(rewards, value, {})
    ids = rewards.prompt_ids
    draw = partial(sample, world, number=7)
    said = jax.jit(draw)(fixed.params, jax.random.key(2), fixed.prompts[ids], fixed.valid[ids])
    return world, fixed, problem, said


def test_the_scripted_reward_counts_words_and_repeated_pairs(drawn):
    world, fixed, _, said = drawn
    del fixed
    tokens, mask = said.tokens[0], said.mask[0]
    found = np.asarray(jax.jit(partial(scripted, world))(tokens, mask))
    for row, values in zip(np.asarray(tokens), found, strict=True):
        response = row[world.prompt_length :].tolist()
        pairs = list(itertools.pairwise(response))
        occurs = [
            any(tuple(response[i : i + len(word)]) == word for i in range(len(response)))
            for word in world.words
        ]
        assert values.tolist() == [*occurs, len(pairs) - len(set(pairs))]
    assert found[:, -1].max() > 0 and found[:, :-1].any()


def test_problems_have_rewards_that_are_centred_and_scaled_and_a_head_that_has_learned(
    folder, tmp_path
):
    """On other samples than those by which they were centred, so that they are only near it."""
    changes = {"num_base_samples": 64, "num_comparisons": 400, "misfit": 0.0, "max_length": 5}
    world, fixed = load(folder, tmp_path, **changes)
    problems = jax.jit(partial(arms.problems, world))(fixed)
    rewards = jax.tree.map(lambda leaf: leaf[0], problems.rewards)
    ids = rewards.prompt_ids

    @jax.jit
    def both(fixed, key):
        prompts, valid = fixed.prompts[ids], fixed.valid[ids]
        more = sample(world, fixed.params, key, prompts, valid, 1_000)
        return [of_samples(world, fixed, rewards, name, more) for name in NAMES]

    found = np.asarray(both(fixed, jax.random.key(3)))
    # 64 samples made the centre, so that it is off by about 1/8.
    np.testing.assert_allclose(found.mean(axis=2), 0.0, atol=0.45)
    centred = found - found.mean(axis=2, keepdims=True)
    np.testing.assert_allclose(np.sqrt(np.mean(centred**2, axis=(1, 2))), 1.0, atol=0.25)
    correlation = np.mean(centred[0] * centred[1]) / np.prod(np.std(centred, axis=(1, 2)))
    expected = float(problems.facts["correlation"][0])
    assert correlation == pytest.approx(expected, abs=0.15)
    assert correlation > 0.5 and (problems.facts["accuracy"] > 0.6).all()


def test_the_learned_reward_is_the_head_on_mean_features(drawn):
    """By numpy, of a document without its padding."""
    world, fixed, problem, said = drawn
    rewards = problem.rewards
    number = int(rewards.prompt_ids[0])
    valid = np.asarray(fixed.valid[number])
    assert not valid.all()
    tokens = np.asarray(said.tokens[0, 3])
    bare = jnp.asarray(tokens[np.concatenate([valid, np.ones(5, bool)])])
    hidden = jax.jit(world.lm.features)(fixed.params, bare[None])[0, -5:]
    both = np.concatenate([hidden, embeddings(fixed.params)[tokens[-5:]]], axis=1)
    scaled = (both - np.asarray(rewards.feature_centre)) / np.asarray(rewards.feature_width)
    found = jax.jit(partial(raw_reward, world, number=0))(
        fixed, rewards, prompt_id=number, tokens=said.tokens[0, 3:4], mask=said.mask[0, 3:4]
    )
    np.testing.assert_allclose(found[0], scaled.mean(axis=0) @ np.asarray(rewards.head), rtol=1e-4)


def test_agreement_by_hand_with_ties():
    """Of the pairs of the first prompt one agrees, one is tied; of the second all are reversed."""
    learned = jnp.array([[1.0, 2.0, 2.0], [3.0, 2.0, 1.0]])
    gold = jnp.array([[5.0, 6.0, 5.0], [0.0, 1.0, 2.0]])
    found = agreement(learned, gold)
    # Of six pairs: 1 agrees, 2 are tied in either, 3 disagree.
    assert found["accuracy"] == pytest.approx((1.0 + 2 * 0.5) / 6)
    # Within prompts: sums of products 1/3 - 2, of squares 2/3 + 2 for both.
    assert found["correlation"] == pytest.approx((1 / 3 - 2) / (2 / 3 + 2))
    same = agreement(learned, 7.0 + 2.0 * learned)
    assert same["correlation"] == pytest.approx(1.0)
    assert same["accuracy"] == pytest.approx((2.0 + 0.5 + 3.0) / 6)


@pytest.mark.parametrize(("is_linear", "expected"), [(True, 0.0), (False, 1.0)])
def test_what_is_out_of_reach_is_nothing_of_a_linear_reward_and_all_of_noise(
    monkeypatch, is_linear: bool, expected: float
):
    """Features of every token are random, with another mean for every prompt, as the reward has."""
    rng = np.random.default_rng(3)
    size, head = 16, jnp.asarray(rng.normal(size=16))
    rewards = Rewards(
        prompt_ids=jnp.arange(2),
        tastes=jnp.zeros(1),
        dislike=jnp.zeros(()),
        feature_centre=jnp.asarray(rng.normal(size=size)),
        feature_width=jnp.asarray(rng.uniform(0.5, 2.0, size=size)),
        head=head,
        centres=jnp.zeros((2, 2)),
        scales=jnp.ones(2),
    )

    def draw(key, number: int) -> Seen:
        found = jax.random.normal(key, (2, number, 3, size)) + jnp.arange(2.0)[:, None, None, None]
        tokens = jax.random.randint(key, (2, number, 3), 0, 1_000_000)
        return Seen(tokens, jnp.ones(tokens.shape, bool), found)

    def gold(world, fixed, rewards, name, seen):
        assert name == "gold"
        noise = (seen.tokens[..., 0] % 1_000) / 1_000  # nothing that the features say
        offsets = jnp.array([[4.0], [-2.0]])
        return offsets + (pooled(rewards, seen.found, seen.mask) @ head if is_linear else noise)

    monkeypatch.setattr("experiments.search.pretrained.problem.of_samples", gold)
    key, score_key = jax.random.split(jax.random.key(1))
    find = lambda key: out_of_reach(None, None, rewards, draw(score_key, 64), draw, key)
    share = jax.jit(find)(key)
    # A regression of noise on 32 rows for every feature misses 1 + 1/32 of it.
    assert share == pytest.approx(expected, abs=0.1 if expected else 1e-4)


def test_a_sentence_ends_with_the_token_that_the_tokenizer_writes(data_dir):
    """And not with the byte token that decodes to a full stop too."""
    tokenizer = load_tokenizer(data_dir / "stories260k")
    assert sentence_end(tokenizer) == tokenizer.encode("It is.")[-1]


def test_a_sentence_cannot_end_with_two_tokens():
    class Bytes:
        def encode(self, text: str) -> list[int]:
            return [*text.replace(".", " .").encode()]

    with pytest.raises(UsageError, match="one token, found 2"):
        sentence_end(Bytes())


def test_a_judge_scores_as_shatter_finetune_does(folder, judges, tmp_path):
    """The other road pads on the right and reads documents that the host has closed."""
    world, fixed = load(folder, tmp_path, **judges)
    ids = jnp.array([0, 1])
    said = jax.jit(
        lambda fixed, key: sample(world, fixed.params, key, fixed.prompts[ids], fixed.valid[ids], 9)
    )(fixed, jax.random.key(4))
    lengths = set()
    for number, flag in enumerate(judges):
        config = finetune.Config(
            model_name_or_path=str(folder),
            objective="rloo",
            reward_model=judges[flag],
            max_length=20,
            max_completion_length=8,
            per_device_eval_batch_size=4,
        )
        (source,) = open_rewards(config, load_model(config))
        for p in (0, 1):
            completions = []
            for tokens, mask in zip(said.tokens[p], said.mask[p], strict=True):
                is_there = np.concatenate([np.asarray(fixed.valid[p]), mask[world.prompt_length :]])
                lengths.add(int(mask.sum()))
                ids_of = np.asarray(tokens)[is_there].tolist()
                completions.append(Completion("", "", "", ids_of, 1, False))
            found = jax.jit(partial(raw_reward, world, number=number))(
                fixed, None, prompt_id=p, tokens=said.tokens[p], mask=said.mask[p]
            )
            np.testing.assert_allclose(found, source.score(completions), atol=1e-5)
    assert len(lengths) > 1  # some ended early


def test_values_are_the_same_read_token_by_token(drawn):
    """With the cache, rows taken in another order, and prompts that are padded."""
    world, fixed, problem, said = drawn
    model = value_model(world)
    number = problem.rewards.prompt_ids[0]
    tokens = said.tokens[0, :2]
    valid = valid_tokens(world, fixed.valid[number], tokens)
    assert not valid.all()

    @jax.jit
    def both(fixed, value):
        params = (fixed.params, value)
        whole = model.apply(params, tokens, valid=valid)
        first = world.prompt_length - 2
        cache = model.init_cache(2, tokens.shape[1])
        parts, cache = model.decode(params, cache, tokens[:, :first], valid=valid[:, :first])
        cache, parts = model.take_cache(cache, jnp.array([1, 0])), [parts]
        for column in range(first, tokens.shape[1]):
            found, cache = model.decode(params, cache, tokens[::-1, column : column + 1])
            parts.append(found[::-1])
        return whole, jnp.concatenate(parts, axis=1)

    whole, parts = both(fixed, problem.value)
    after = world.prompt_length - 1
    np.testing.assert_allclose(parts[:, after:], whole[:, after:], atol=1e-4)
    assert np.std(whole[:, after:]) > 1e-3


def test_a_fit_finds_a_reward_that_is_a_value(drawn):
    """Targets that are linear in what the value reads, at one length, are explained whole."""
    world, fixed, problem, _ = drawn
    rng = np.random.default_rng(0)
    number, width = 4_000, 16
    before = jnp.asarray(rng.normal(size=(number, 1, width)), float)
    sums = jnp.asarray(rng.normal(size=(number, 1, width)), float)
    # Three directions hold nearly everything, as many as there are components.
    strong = jnp.where(jnp.arange(width) < 3, 1.0, 1e-4)[None, None]
    table = embeddings(fixed.params)
    tokens = jnp.asarray(rng.integers(len(table), size=(number, 1)))
    part = States(before * strong, sums * strong, tokens, jnp.ones((number, 1), bool))
    acts = np.asarray(table - table.mean(axis=0, keepdims=True))[tokens[:, 0]]
    _, _, directions = np.linalg.svd(acts, full_matrices=False)
    targets = 2.0 * sums[:, 0, 1] + before[:, 0, 0] * (1.0 + acts @ directions[0])
    noise = jnp.asarray(rng.normal(size=number), float)
    fit = jax.jit(partial(fit_value, world))
    value, explained = fit(table, part, problem.rewards, targets)
    assert explained > 0.999
    assert fit(table, part, problem.rewards, noise)[1] < 0.01
    # What it says of one document is what the model with these parameters would say of it.
    h = part.before[0, 0]
    said = part.sums[0, 0] @ value.along + jnp.append(1.0, h @ value.projection) @ value.table
    np.testing.assert_allclose(said[tokens[0, 0]], targets[0], atol=0.05)


def enumerated(world, fixed, problem, place):
    """Returns all documents of one prompt, with their log-probs and rewards."""
    number = int(problem.rewards.prompt_ids[place])
    size, length = world.sizes.vocab_size, world.config.max_length
    responses = np.array(list(itertools.product(range(size), repeat=length)))
    tokens = np.concatenate([np.tile(fixed.prompts[number], (len(responses), 1)), responses], 1)
    tokens, mask = jnp.asarray(tokens), jnp.arange(tokens.shape[1]) >= world.prompt_length
    mask = jnp.broadcast_to(mask, tokens.shape)
    valid = valid_tokens(world, fixed.valid[number], tokens)
    log_p0 = documents.document_log_probs(world.lm, fixed.params, tokens, mask, valid=valid)
    rewards = [reward(world, fixed, problem.rewards, n, place, tokens, mask) for n in NAMES]
    return tokens, valid, log_p0, rewards


@pytest.mark.parametrize("arm", ["best_of_n", "guided"])
def test_rewards_are_those_of_the_enumerated_law(folder, tmp_path, arm: str):
    """The best of 4 has the law F^n - F_-^n; a guided token is drawn from p0 exp(V / beta)."""
    budget = {"best_of_n": 12, "guided": 3}[arm]
    world, fixed = load(folder, tmp_path, num_draws=1_500)
    problems = jax.jit(partial(arms.problems, world))(fixed)
    found = arms.run_search(world, fixed, problems, arm, budget)
    for seed in range(2):
        problem = jax.tree.map(lambda leaf, seed=seed: leaf[seed], problems)
        wanted = []
        for place in range(2):
            tokens, valid, log_p0, rewards = enumerated(world, fixed, problem, place)
            if arm == "best_of_n":
                law = evaluation.best_of_n_log_probs(log_p0, rewards[0], num_samples=4)
            else:
                logits = world.lm.apply(fixed.params, tokens, valid=valid)
                params = (fixed.params, problem.value)
                twists = value_model(world).apply(params, tokens, valid=valid) / world.config.beta
                each = documents.token_log_probs(jax.nn.log_softmax(logits) + twists, tokens)
                law = jnp.sum(each[:, world.prompt_length :], axis=1)
            np.testing.assert_allclose(jnp.sum(jnp.exp(law)), 1.0, rtol=1e-3)
            wanted.append([jnp.exp(law) @ values for values in rewards])
        for name, value in zip(NAMES, np.mean(wanted, axis=0), strict=True):
            # Rewards have a deviation of about 1, so that of a mean of 3,000 is about .02.
            assert found[name][seed] == pytest.approx(value, abs=0.1)


def test_one_response_of_a_search_is_what_the_trained_policy_says(folder, tmp_path, monkeypatch):
    """best_of_n with one response, and the last column of the training: means of the same law."""
    monkeypatch.setattr(arms, "NUM_EVALUATED", 2_000)
    changes = {"policy_steps": 30, "policy_rate": 0.03, "batch_size": 32, "num_draws": 2_000}
    world, fixed = load(folder, tmp_path, **changes)
    problems = jax.jit(partial(arms.problems, world))(fixed)
    trained, adapters = arms.run_training(world, fixed, problems)
    found = arms.run_search(world, fixed, problems, "best_of_n", 3, adapters)
    plain = arms.run_search(world, fixed, problems, "best_of_n", 3)
    # 4,000 samples of rewards with a deviation of about 1: a difference of .02 on average.
    for name in NAMES:
        np.testing.assert_allclose(found[name], trained[name][:, -1], atol=0.1)
    assert (found["learned"] > plain["learned"] + 0.3).all()


def test_the_trained_policy_gains(folder, tmp_path):
    changes = {"policy_steps": 60, "policy_rate": 0.02, "batch_size": 32, "rank": 4}
    world, fixed = load(folder, tmp_path, **changes)
    found, _ = arms.run_training(world, fixed, jax.jit(partial(arms.problems, world))(fixed))
    gain = found["learned"] - world.config.beta * found["kl"]
    np.testing.assert_allclose(found["kl"][:, 0], 0.0, atol=1e-4)
    assert (found["tokens"][:, -1] == 60 * 32 * 3).all()
    assert (gain[:, -1] > gain[:, 0] + 0.3).all()


def test_a_run_writes_its_folder_and_is_resumed(folder, tmp_path: Path, monkeypatch, capsys):
    """A part that is there is not computed again; an arm may be added. The cost is the model's."""
    sizes = []
    monkeypatch.setattr(run, "minutes", lambda config, *size: sizes.append(size) or 1234.0)
    run.experiment(tiny(folder, tmp_path, arms=("guided", TRAINED)))
    params = jax.tree.leaves(load(folder, tmp_path)[1].params)
    assert sizes == [(sum(leaf.size for leaf in params), 2 * 8)]
    assert "about 1,234 minutes on one CPU core" in capsys.readouterr().out.replace("\n", " ")
    out = tmp_path / "run"
    before = json.loads((out / "summary.json").read_text())
    (out / "arms" / "guided_12.npz").unlink()
    names = ("beam", "beam_by_value", "smc", "tree_gumbel")
    run.experiment(tiny(folder, tmp_path, arms=("guided", *names, TRAINED)))
    after = json.loads((out / "summary.json").read_text())
    assert [row for row in after if row in before] == before
    assert {"accuracy", "correlation", "out_of_reach", "twist_explains"} <= set(before[0])
    texts = json.loads((out / "texts.json").read_text())
    assert set(texts) == {"best_of_n", "guided", *names, BEST_OF[TRAINED]}
    assert all(len(of_arm) == 2 and len(of_arm[0]) == 2 for of_arm in texts.values())
    assert (out / "search.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="num_comparisons"):
        run.experiment(tiny(folder, tmp_path, num_comparisons=7))


def test_a_run_with_one_judge_twice_has_one_reward(folder, judges, tmp_path: Path):
    """What is searched for and what counts are then the same, whatever the arm."""
    same = dict.fromkeys(judges, judges["reward_model"])
    run.experiment(tiny(folder, tmp_path, arms=("smc", TRAINED), **same))
    about, *rows = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "out_of_reach" not in about
    assert about["correlation"]["mean"] == pytest.approx(1.0)
    for row in rows:
        assert row["gold"] == pytest.approx(row["learned"])
    spent = {row["budget"]: row["tokens"]["mean"] for row in rows if row["arm"] == "best_of_n"}
    assert all(0 < spent[budget] <= budget for budget in (3, 12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setting": "real"}, "setting"),
        ({"arms": ("ppo",)}, "--setting=exact"),
        ({"twist": "exact"}, "enumerated"),
        ({"num_prompts": 4}, "--num_prompts must be at most"),
        ({"reward_model": "judge"}, "--held_out_reward_model"),
        ({"reward_model": "none", "held_out_reward_model": "none"}, "--reward_model=none"),
        ({"reward_model": "judge", "misfit": 0.1}, "--misfit is about the scripted"),
        (
            {"reward_model": "judge", "num_comparisons": 6},
            "--num_comparisons is about the scripted",
        ),
        ({"prompts": ("mom", "")}, "not empty"),
        ({"max_length": 40, "budgets": (80,)}, "shorten"),
        ({"model_name_or_path": "nowhere"}, "nowhere"),
    ],
)
def test_bad_flags(folder, tmp_path, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        run.experiment(tiny(folder, tmp_path, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "flag"), [(setting, flag) for setting in OF_SETTING for flag in OF_SETTING[setting]]
)
def test_flags_of_the_other_setting_are_refused(setting: SettingName, flag: str):
    other = next(name for name in OF_SETTING if name != setting)
    unset = getattr(Config(), flag)
    value = {str: "judge", tuple: ("One day",)}.get(type(unset), 3)
    assert value != unset
    with pytest.raises(UsageError, match=f"--{flag} needs --setting={setting}"):
        run.check(Config(setting=other, **{flag: value}))


def changed(folder, out: Path, name: str, **changes) -> str:
    """Copies a model folder, and changes one of its JSON files."""
    shutil.copytree(folder, out)
    values = json.loads((out / name).read_text())
    (out / name).write_text(json.dumps({**values, **changes}))
    return str(out)


def test_judges_need_a_token_that_closes_a_document(folder, judges, tmp_path):
    out = changed(folder, tmp_path / "endless", "tokenizer_config.json", eos_token=None)
    with pytest.raises(UsageError, match="expected a tokenizer with an EOS"):
        load(out, tmp_path, **judges)


def test_judges_must_have_room_for_what_they_read(folder, judges, tmp_path):
    """The longest prompt has 4 tokens with BOS, a response 3, its end 1."""
    name = "held_out_reward_model"
    for room, is_enough in ((8, True), (7, False)):
        out = tmp_path / str(room)
        judge = changed(judges[name], out, "config.json", max_position_embeddings=room)
        given = {**judges, name: judge}
        if is_enough:
            load(folder, tmp_path, **given)
            continue
        with pytest.raises(UsageError, match=f"--{name}=.*4 \\+ 3 \\+ 1 tokens.*judge's 7"):
            load(folder, tmp_path, **given)
