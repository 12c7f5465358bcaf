"""The agency experiment: its worlds, its models, its gradients, its binary at a tiny size."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.agency import agents, measures, process, run, worlds
from experiments.agency.config import ARMS, Config
from shatter import environments, models
from shatter.cli.common.binary import UsageError

TINY = {
    "num_seeds": 2,
    "num_operations": 1,
    "max_operand": 3,
    "num_companies": 3,
    "num_demonstrations": 6,
    "num_shown": 1,
    "width": 8,
    "num_layers": 1,
    "pretraining_updates": 1,
    "num_rounds": 3,
    "imitation_rounds": 1,
    "updates_per_round": 2,
    "batch_size": 4,
    "num_samples": 2,
    "num_evaluated": 2,
    "num_tries": 2,
    "chunk_rounds": 3,
}
KEY = jax.random.key(3)


def tiny(tmp_path, **changes):
    return Config(run_dir=str(tmp_path), **{**TINY, **changes})


@pytest.fixture(scope="module")
def agent():
    return agents.make_agent(Config(**TINY))


@pytest.fixture(scope="module")
def library():
    return agents.make_agent(Config(**TINY, environment="library"))


@pytest.mark.slow
def test_a_run_writes_its_folder_and_gets_more_arms(tmp_path):
    run.experiment(tiny(tmp_path, arms=("imitation",)))
    before = json.loads((tmp_path / "summary.json").read_text())
    run.experiment(tiny(tmp_path))
    after = json.loads((tmp_path / "summary.json").read_text())
    assert set(after["arms"]) == set(ARMS)
    assert after["arms"]["imitation"]["return"] == before["arms"]["imitation"]["return"]
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]) for row in rows} == {0, 2, 4, 6}
    first = [r for r in rows if r["metric"] == "kl_from_reference" and r["step"] == "2"]
    kl = {r["arm"]: float(r["value"]) for r in first if r["seed"] == "0"}
    assert kl["imitation_rl"] != 0  # the reference is the start until RL begins, one round later
    last = [r for r in rows if r["metric"] == "kl_from_reference" and r["step"] == "6"]
    kl = {r["arm"]: float(r["value"]) for r in last if r["seed"] == "0"}
    assert kl["imitation_search"] == 0 and kl["imitation_rl"] != 0  # search leaves its policy alone
    assert (tmp_path / "agency.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="quality"):
        run.experiment(tiny(tmp_path, quality=0.7))


@pytest.mark.slow
def test_a_run_in_the_library_from_both_starts(tmp_path):
    config = tiny(tmp_path, environment="library", starts=("scratch", "pretrained"))
    run.experiment(dataclasses.replace(config, arms=("prompting", "imitation_rl")))
    arms = json.loads((tmp_path / "summary.json").read_text())["arms"]
    assert list(arms) == [
        "prompting",
        "imitation_rl",
        "pretrained_prompting",
        "pretrained_imitation_rl",
    ]
    assert {"success_questions", "success_entities", "success_phrasings"} <= set(arms["prompting"])
    assert arms["imitation_rl"]["trained_tokens"]["mean"] > 0
    assert arms["prompting"]["trained_tokens"]["mean"] == 0


@pytest.mark.slow
def test_the_expert_is_right_as_often_as_its_quality_says():
    config = Config(**TINY | {"num_demonstrations": 2_000})
    shown = worlds.arithmetic_world(config).pool
    found = np.mean(np.asarray(shown.rewards).max(axis=1) > measures.RIGHT)
    assert found == pytest.approx(0.8**2, abs=0.03)
    assert np.asarray(shown.done).all() and not np.asarray(shown.num_invalid).any()


@pytest.mark.slow
def test_no_question_is_in_both_parts(agent):
    """A fifth of them is held out."""
    reset = jax.jit(jax.vmap(agent.world.environment.reset))
    questions = []
    for keys in (agent.world.train, agent.world.held_out["questions"]):
        states, _ = reset(keys[:400])
        rows = np.concatenate([states.operands, states.operators], axis=1)
        questions.append({tuple(row) for row in rows.tolist()})
    train, held_out = questions
    assert not train & held_out
    assert len(train | held_out) == 3 * 3 * 3 and 3 <= len(held_out) <= 9


def asked(agent, keys, number=40) -> list[str]:
    """Returns the first questions of some keys."""
    _, prompts = jax.jit(jax.vmap(agent.world.environment.reset))(keys[:number])
    codec = environments.word_codec(agent.world.vocabulary)
    rows = zip(np.asarray(prompts.tokens), np.asarray(prompts.length), strict=True)
    return [codec.decode(tokens[:length]) for tokens, length in rows]


@pytest.mark.slow
def test_keys_of_the_library_ask_the_questions_of_their_split(library):
    corpus = environments.make_corpus(jax.random.key(0), num_companies=3)
    found = {"train": asked(library, library.world.train)}
    found |= {split: asked(library, keys) for split, keys in library.world.held_out.items()}
    assert list(found) == list(environments.SPLITS)
    for split, texts in found.items():
        expected = {f"{question.text}\n" for question in corpus.questions[split]}
        assert set(texts) <= expected and len(set(texts)) > 1


@pytest.mark.slow
def test_the_expert_of_the_library_is_about_training_questions(library):
    pool, codec = library.world.pool, environments.word_codec(library.world.vocabulary)
    corpus = environments.make_corpus(jax.random.key(0), num_companies=3)
    known = {question.text for question in corpus.questions["train"]}
    for i in range(len(pool.tokens)):
        text = codec.decode(np.asarray(pool.tokens[i])[: int(pool.valid[i].sum())])
        assert text.partition("\n")[0] in known
    assert np.asarray(pool.rewards).max() > measures.RIGHT
    assert pool.tokens.shape[1] == library.world.limits["max_length"]
    assert not np.asarray(pool.valid)[:, -library.world.limits["max_action_length"] :].any()


@pytest.mark.slow
def test_rows_of_pages_are_pages(library):
    rows = worlds.page_rows(library.world, 40, np.random.default_rng(0), num_rows=3)
    codec = environments.word_codec(library.world.vocabulary)
    corpus = environments.make_corpus(jax.random.key(0), num_companies=3)
    lines = {line for page in corpus.pages.values() for line in page}
    for row in np.asarray(rows):
        *whole, _ = codec.decode(row).split("\n")
        assert len(whole) > 2 and set(whole) <= lines


@pytest.mark.slow
def test_tries_share_their_question_and_nothing_else(agent):
    params = jax.jit(agent.lm.init)(jax.random.key(1))
    keys = agent.world.held_out["questions"][:3]
    play = jax.jit(lambda params, key: measures.episodes(agent, params, key, keys, 4))
    seen = play(params, jax.random.key(2))
    assert seen.tokens.shape[:2] == (3, 4)
    said = np.where(np.asarray(seen.is_action | ~seen.valid), -1, np.asarray(seen.tokens))
    first = np.argmax(np.asarray(seen.is_action), axis=-1)
    questions = [{tuple(said[q, k, : first[q, k]]) for k in range(4)} for q in range(3)]
    assert all(len(one) == 1 for one in questions) and len(set.union(*questions)) > 1
    assert len({tuple(row) for row in np.asarray(seen.tokens)[0]}) > 1


@pytest.mark.slow
def test_prompting_shows_whole_episodes_before_the_question(agent):
    """The context is an episode of the expert, then the question of the key."""
    params = jax.jit(agent.lm.init)(jax.random.key(1))
    keys = agent.world.held_out["questions"][:2]
    play = jax.jit(lambda key: measures.episodes(agent, params, key, keys, 2, num_shown=1))
    seen = play(KEY)
    pool = agent.world.pool
    shown = {
        tuple(row[: int(n)]) for row, n in zip(pool.tokens.tolist(), pool.valid.sum(1), strict=True)
    }
    _, questions = jax.vmap(agent.world.environment.reset)(keys)
    for q in range(2):
        first = int(np.argmax(np.asarray(seen.is_action[q, 0])))
        before = seen.tokens[q, 0, :first].tolist()
        question = questions.tokens[q, : int(questions.length[q])].tolist()
        assert before[-len(question) :] == question
        assert tuple(before[: -len(question)]) in shown


@pytest.mark.slow
def test_the_gradient_of_rl_is_that_of_the_leave_one_out_gains(agent):
    """Against the sum over episodes of (gain less the others' mean) times the score."""
    setting = process.Setting(Config(**TINY), agent, "imitation_rl")
    params = jax.jit(agent.lm.init)(KEY)
    reference = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    key = jax.random.key(4)

    @jax.jit
    def both(params, reference):
        found, _ = process._reinforce(setting, reference, params, key)
        seen = process._own_episodes(setting, params, key)

        def score(params):
            scores = measures.log_probs(agent, params, seen.tokens)
            return jnp.sum(jnp.where(seen.is_action, scores, 0.0), axis=-1)

        beta = setting.config.beta
        gains = measures.returns(setting.config, seen) - beta * (score(params) - score(reference))
        weights = jax.lax.stop_gradient(gains - gains[:, ::-1])
        return found, jax.grad(lambda p: -jnp.mean(weights * score(p)))(params)

    found, expected = both(params, reference)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 1e-3


@pytest.mark.slow
def test_an_episode_that_is_cut_pays_for_all_of_its_turns(library):
    """One with the right answer in its third turn of ten, and one that ends there without room."""
    seen = jax.tree.map(lambda leaf: leaf[:2], library.world.pool)
    rewards = jnp.zeros((2, 10)).at[:, :3].set(-0.05).at[0, 2].add(1.0)
    seen = seen._replace(
        rewards=rewards, num_turns=jnp.asarray([3, 3]), done=jnp.asarray([True, False])
    )
    found = measures.returns(Config(**TINY, price=0.05), seen)
    np.testing.assert_allclose(found, [1 - 0.15, -0.5], atol=1e-6)


@pytest.mark.slow
def test_values_are_read_after_the_last_token(agent):
    """What lies behind an episode does not matter, and what is in it does."""
    params = jax.jit(agent.lm.init)(KEY)
    seen = jax.tree.map(lambda leaf: leaf[:3], agent.world.pool)
    valued = jax.jit(lambda seen: measures.values(agent, params, seen))
    found = valued(seen)
    dirty = seen._replace(tokens=jnp.where(seen.valid, seen.tokens, 5))
    np.testing.assert_allclose(valued(dirty), found, atol=1e-6)
    for i in range(3):
        length = int(seen.valid[i].sum())
        logits = agent.lm.apply(params, seen.tokens[i, :length])[-1]
        assert found[i] == pytest.approx(float(logits[0] - logits[1]), abs=1e-5)
    changed = seen._replace(tokens=seen.tokens.at[:, 0].set(9))
    assert float(jnp.abs(valued(changed) - found).min()) > 1e-6


@pytest.mark.slow
def test_the_value_is_trained_towards_the_return(agent):
    """Its gradient is (sigmoid of the value less the return in [0, 1]) times that of the value."""
    setting = process.Setting(Config(**TINY), agent, "imitation_search")
    params = jax.jit(agent.lm.init)(KEY)

    @jax.jit
    def both(params):
        found, number = process._judge(setting, params, params, KEY)
        seen = process._own_episodes(setting, params, KEY)
        target = jnp.clip(measures.returns(setting.config, seen), 0, 1)
        error = jax.nn.sigmoid(measures.values(agent, params, seen)) - target
        mean = lambda p: jnp.mean(error * measures.values(agent, p, seen))
        return found, jax.grad(mean)(params), number, seen.valid.sum()

    found, expected, number, valid = both(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert number == valid


@pytest.mark.slow
def test_a_restricted_model_has_the_law_of_the_other_among_its_tokens():
    lm = models.transformer(models.TransformerConfig(11, 6, width=8, num_layers=1, num_heads=2))
    ids, tokens = (7, 0, 4, 9), jnp.asarray([[2, 0, 3, 1]])
    small, params = agents.restricted(lm, ids), jax.jit(lm.init)(KEY)
    logits = lm.apply(params, jnp.asarray(ids)[tokens])
    np.testing.assert_allclose(small.apply(params, tokens), logits[..., jnp.asarray(ids)])
    cached, _ = small.decode(params, small.init_cache(1, 4), tokens)
    np.testing.assert_allclose(cached, small.apply(params, tokens), atol=1e-5)


class Letters:
    """A tokenizer of characters."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def test_every_word_has_a_token_of_its_own():
    """The last that is free: an end is not among them where others have taken it."""
    found = agents.word_tokens(Letters(), ("call", "<all>", "lac"), "letters")
    assert [chr(token) for token in found] == ["l", "a", "c"]
    with pytest.raises(UsageError, match="expected a token for 'l' that no other word"):
        agents.word_tokens(Letters(), ("call", "l"), "letters")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("ppo",)}, "ppo"),
        ({"starts": ("zero",)}, "zero"),
        ({"starts": ("pretrained",)}, "--starts=pretrained needs text to have read"),
        ({"imitation_rounds": 3}, "--imitation_rounds must be below"),
        ({"batch_size": 5}, "multiple of --num_samples"),
        ({"width": 12}, "multiple of twice --num_heads=4"),
        ({"quality": 1.5}, "--quality"),
        ({"price": 0.5}, "--price"),
        ({"num_companies": 31}, "--num_companies must be at most 30, found 31"),
        ({"num_shown": 13}, "--num_shown must be at most twice"),
        ({"max_operand": 99, "num_operations": 3}, "four digits"),
        ({"model_name_or_path": "/nowhere"}, "--model_name_or_path=/nowhere"),
    ],
)
def test_bad_flags(tmp_path, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        run.experiment(tiny(tmp_path / "new", **changes))
    assert not (tmp_path / "new").exists()
