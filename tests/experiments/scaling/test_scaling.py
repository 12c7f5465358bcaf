"""The scaling experiment: its texts, gold rewards, losses and slopes, its binary at a tiny size."""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.scaling import (
    arms,
    family,
    gold,
    model,
    objectives,
    plot,
    process,
    run,
    summary,
    task,
)
from experiments.scaling.config import ARMS, SIZES, Config
from experiments.scaling.corpus import Corpus, make_corpus, prompts_of, words_of
from experiments.scaling.language import (
    encode_documents,
    encode_prompts,
    family_language,
    read_responses,
)
from experiments.scaling.streams import Use, generator, keys_of
from shatter import losses
from shatter.cli.common.binary import UsageError
from shatter.cli.common.frozen import count_parameters

TINY = {
    "num_seeds": 2,
    "sizes": ("8k",),
    "reference": "8k",
    "context": 64,
    "pretraining_tokens": 4_000,
    "num_prompts": 8,
    "num_drawn": 2,
    "prompt_length": 6,
    "response_length": 12,
    "num_evaluated": 4,
    "num_updates": 4,
    "num_rounds": 2,
    "batch_size": 4,
    "num_samples": 2,
    "best_of": 2,
}
NOUNS = ("king", "queen", "friar", "lord", "friend", "slave", "heart", "sword")
LINES = ["O The lord of a slave!"] + [
    f"{one.title()} {other} loves the {third}, my sweet."
    for one in NOUNS
    for other in NOUNS
    for third in NOUNS[:4]
]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus("\n".join(LINES) + "\n")


def tiny(tmp_path, **changes) -> Config:
    return Config(run_dir=str(tmp_path), **{**TINY, **changes})


def test_prompts_are_beginnings_of_lines_of_their_part(corpus: Corpus):
    config = Config(**TINY)
    whole = corpus.text + corpus.held_out
    assert whole == "\n".join(LINES) + "\n" and corpus.text.endswith("\n")
    for text in (corpus.text, corpus.held_out):
        prompts = prompts_of(config, text)
        assert len(set(prompts)) == len(prompts)
        for prompt in prompts:
            line = next(line for line in text.split("\n") if line.startswith(f"{prompt} "))
            assert 6 <= len(prompt) <= 12 and len(line) - len(prompt) >= 6
    with pytest.raises(UsageError, match="num_prompts"):
        prompts_of(config, corpus.text, 10_000)


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("The king", " loves a slave", 0.0),  # one kind, one unkind
        ("The king", " loves a friend", 2.0),
        ("The lov", "es of a king", 1.0),  # the word that the prompt begins
        ("O sweet", " king of the frie", 0.0),  # kind words of the prompt do not count; cut: "frie"
        ("O sweet", " xqzw", -2.0),  # letters in no word
        ("O sweet", " king xqzw", -1.0),  # half of the letters
        ("O sweet", ", !", -2.0),  # nothing is said
    ],
)
def test_kindness(corpus: Corpus, prompt: str, response: str, expected: float):
    assert words_of("I'll go") == ["i", "ll", "go"]
    words = corpus.words | {"lov"}
    assert gold._kindness(corpus._replace(words=words), prompt, response) == pytest.approx(expected)


def test_the_scale_of_the_gold_reward_is_that_within_prompts():
    raw = lambda texts: np.array([10.0 * len(prompt) + len(text) for prompt, text in texts])
    texts = [[("a", "x" * n) for n in (1, 3)], [("ab", "x" * n) for n in (2, 4)]]
    found = gold.scaled(raw, texts, taste=2.0)
    values = np.stack([found(of_prompt) for of_prompt in texts])
    assert values.mean() == pytest.approx(0.0)
    assert np.mean(values.var(axis=1, ddof=1)) == pytest.approx(2.0**2)


def test_documents_are_read_as_they_were_written(corpus: Corpus):
    """Left padding, the end of a line, and responses that are cut."""
    config = Config(**TINY)
    language = family_language(config, "8k", corpus)
    texts = [("The king", " loves."), ("O lord", ", slave of t"), ("O king", "")]
    seen = encode_documents(language, texts, most=12, max_length=12)
    assert seen.mask.sum(axis=1).tolist() == [8, 12, 1]  # an end that is trained on too
    assert seen.valid[:, 0].tolist() == [True, False, False]
    prompts = [prompt for prompt, _ in texts]
    read = read_responses(language, prompts, seen.tokens, seen.mask, most=12)
    assert read == [response for _, response in texts]
    longer, valid = encode_prompts(language, prompts, length=12)
    assert longer.shape == (3, 12) and valid.sum(axis=1).tolist() == [9, 7, 7]


@pytest.fixture(scope="module")
def setting(corpus: Corpus) -> objectives.Setting:
    config = Config(**TINY)
    return objectives.Setting(config, family_language(config, "8k", corpus), 12)


@pytest.fixture(scope="module")
def seed(corpus: Corpus) -> task.Task:
    prompts = prompts_of(Config(**TINY), corpus.text)[:8]
    pairs = [[" of love", " of a sword"]] * 8
    return task.Task(
        prompts, pairs, [0, 1] * 4, [" my sweet."] * 8, prompts[:4], [[" a", " b"]] * 4
    )


def test_shots_are_whole_lines_that_the_context_holds(setting: objectives.Setting, seed: task.Task):
    texts = model._with_shots(setting, seed, 0)
    for text, prompt in zip(texts, seed.evaluated, strict=True):
        *lines, last = text.split("\n")
        assert last == prompt and lines
        shown = [p + d for p, d in zip(seed.prompts, seed.demonstrations, strict=True)]
        assert len(set(lines)) == len(lines) and set(lines) <= set(shown)
        room = setting.config.context - setting.max_length - 1
        assert len(text) <= room < len(text) + max(map(len, shown)) + 1


@pytest.mark.slow  # seconds of compilation
def test_pairs_are_learned_by_dpo_and_by_both_forms_of_ilhf(
    setting: objectives.Setting, seed: task.Task, float64
):
    """Their common loss against the library's, with its gradient."""
    material = jax.tree.map(jnp.asarray, model._material(setting, seed, 0))
    params, base = (
        jax.tree.map(lambda leaf: leaf.astype(float), setting.language.lm.init(jax.random.key(n)))
        for n in (0, 1)
    )
    rows = jnp.array([0, 3, 5])
    chosen = material.choices[rows]
    log_probs = lambda params: objectives.log_prob(
        setting, params, jax.tree.map(lambda leaf: leaf[rows], material.pairs)
    )
    picked = lambda values, which: values[jnp.arange(3), which]

    def dpo(params):
        both = [
            picked(log_probs(p), which) for p in (params, base) for which in (chosen, 1 - chosen)
        ]
        return jnp.mean(losses.dpo_loss(*both, beta=0.3))

    expected = {
        (0.3, 0.0): dpo,
        (1.0, 0.0): lambda params: jnp.mean(
            losses.ilhf_loss(log_probs(params) - log_probs(base), chosen)
        ),
        (1.0, 1.0): lambda params: jnp.mean(losses.ilhf_loss(log_probs(params), chosen)),
    }
    for how, loss in expected.items():
        frozen = (base, (material, jnp.array(how)))
        found = lambda params, frozen=frozen: objectives.pairs_loss(
            setting, params, frozen, jax.random.key(0), rows
        )[0]
        values = [jax.jit(jax.value_and_grad(f))(params) for f in (found, loss)]
        for one, other in zip(*map(jax.tree.leaves, values), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.slow  # seconds of compilation
def test_the_gradient_of_rl_is_that_of_the_leave_one_out_gains(
    setting: objectives.Setting, seed: task.Task
):
    """Against the sum over samples of (gain less the others' mean) times the score."""
    material = jax.tree.map(jnp.asarray, model._material(setting, seed, 0))
    params, base, other = (setting.language.lm.init(jax.random.key(n)) for n in range(3))
    reward_params = {"model": other, "head": jnp.linspace(-1.0, 1.0, setting.language.width)}
    rows, key = jnp.array([1, 2]), jax.random.key(4)

    @jax.jit
    def both(params):
        frozen = (base, (material, base, reward_params))
        found = jax.grad(lambda p: objectives.rl_loss(setting, p, frozen, key, rows)[0])(params)
        prompts = jax.tree.map(lambda leaf: leaf[rows], material.prompts)
        seen, drawn = objectives.draw(setting, params, key, prompts, 2)
        score = lambda params: objectives.log_prob(setting, params, seen)
        gains = objectives.reward(setting, reward_params, seen)
        gains = gains - setting.config.beta * (score(params) - score(base))
        weights = jax.lax.stop_gradient(gains - gains[:, ::-1])
        return (
            found,
            jax.grad(lambda p: -jnp.mean(weights * score(p)))(params),
            drawn,
            score(params),
        )

    found, expected, drawn, scored = both(params)
    np.testing.assert_allclose(drawn, scored, atol=1e-4)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found)) > 1e-3


@pytest.mark.slow  # seconds of compilation
def test_the_reward_is_read_at_the_last_token(setting: objectives.Setting, seed: task.Task):
    """What stands after the end of a response changes nothing."""
    material = model._material(setting, seed, 0)
    params = setting.language.lm.init(jax.random.key(0))
    reward_params = {"model": params, "head": jnp.linspace(-1.0, 1.0, setting.language.width)}
    seen = material.demonstrations
    tokens = np.where(seen.mask | ~(np.cumsum(seen.mask, axis=1) > 0), seen.tokens, 3)
    assert (tokens != seen.tokens).any()
    values = jax.jit(lambda seen: objectives.reward(setting, reward_params, seen))
    np.testing.assert_allclose(values(seen), values(seen._replace(tokens=tokens)), atol=1e-5)


def test_every_pass_shows_every_row_once():
    rows = arms.order(Config(**TINY), [0, 1], 6, 4, Use.LEARN)
    assert rows.shape == (2, 6, 4)
    for of_seed in rows:
        for of_pass in of_seed.reshape(3, 8):
            assert sorted(of_pass) == list(range(8))
    assert (rows[0] != rows[1]).any()


def test_every_use_of_random_numbers_has_its_own():
    """Of three roots, three seeds and all uses, and of the steps that learners and arms fold in."""
    draws, keys = [], []
    for root in range(3):
        config = Config(seed=root)
        for use in Use:
            draws += [generator(config, seed, use).integers(2**62) for seed in range(3)]
            of_seeds = keys_of(config, range(3), use)
            steps = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(
                of_seeds, jnp.arange(64)
            )
            keys += map(tuple, np.asarray(jax.random.key_data(of_seeds)).tolist())
            keys += map(tuple, np.asarray(jax.random.key_data(steps)).reshape(-1, 2).tolist())
    assert len(set(draws)) == len(draws) == 9 * len(Use)
    assert len(set(keys)) == len(keys)
    orders = [arms.order(Config(), [0], 4, 8, use).tolist() for use in Use]
    assert len(set(map(str, orders))) == len(Use)


@pytest.mark.slow  # seconds of compilation
def test_no_arm_speaks_with_keys_that_were_learned_with(
    setting: objectives.Setting, seed: task.Task, monkeypatch
):
    """The keys that reach learners and speakers, of all arms, with what is folded into them."""
    config = setting.config
    base = setting.language.lm.init(jax.random.key(0))
    material = jax.tree.map(lambda leaf: np.stack([leaf]), model._material(setting, seed, 0))
    run, learned, spoken = arms.programs(setting), {}, {}
    name = lambda key: tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())

    def start(params, keys, rate):
        learned.setdefault(arm, []).extend(
            name(jax.random.fold_in(keys[0], step)) for step in range(config.num_updates)
        )
        return run.start(params, keys, rate)

    def speak(params, base, keys, *prompts):
        spoken.setdefault(arm, []).append(name(keys[0]))
        return run.speak(params, base, keys, *prompts)

    monkeypatch.setattr(arms, "programs", lambda _: run._replace(start=start, speak=speak))
    judge = task.Judge(None, lambda texts: np.zeros(len(texts)), None)
    here = model.Model(setting, base, [seed], [jax.tree.map(lambda leaf: leaf[0], material)])
    monkeypatch.setattr(process, "load_or_run", lambda path, run, mend: run())
    for arm in ARMS:
        process._group(here, judge, arm, [0], Path())
    trained = [key for keys in learned.values() for key in keys]
    said = [key for keys in spoken.values() for key in keys]
    assert not set(trained) & set(said)
    assert len(set(learned["sft_rl"])) == len(learned["sft_rl"]) == 3 * config.num_updates
    for arm in ("base", "prompting", "best_of_n"):
        others = [key for other, keys in spoken.items() if other != arm for key in keys]
        assert spoken[arm] and not set(spoken[arm]) & set(others)
        assert len(set(spoken[arm])) == len(spoken[arm])


def test_slopes_are_those_of_least_squares():
    """Against the covariance over the variance."""
    values = np.random.default_rng(0).normal(size=(3, 4))
    parameters = np.array([8e3, 2e4, 1e5, 3e6])
    place = np.log10(parameters) - np.log10(parameters).mean()
    np.testing.assert_allclose(summary.slopes(values, parameters), values @ place / (place @ place))


def test_the_family_ascends_and_is_about_as_large_as_its_names(corpus: Corpus):
    scale = {"k": 1e3, "M": 1e6}
    for size in ("8k", "120k", "3M"):
        lm = family_language(Config(), size, corpus).lm
        found = count_parameters(jax.eval_shape(lm.init, jax.random.key(0)))
        # The names are for the 65 characters of Shakespeare.
        named = int(size[:-1]) * scale[size[-1]]
        assert found == pytest.approx(named, rel=0.16)
    assert [SIZES[s].width for s in SIZES] == sorted(SIZES[s].width for s in SIZES)


def test_the_recipe_is_that_of_pretraining_alone(corpus: Corpus):
    config = Config(**TINY)
    same = dataclasses.replace(config, sft_rate=0.5, seed=3, sizes=("8k",))
    other = dataclasses.replace(config, pretraining_rate=0.5)
    names = [family.recipe(c, "8k", corpus) for c in (config, same, other)]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("ppo",)}, "ppo"),
        ({"sizes": ("9k",)}, "9k"),
        ({"reference": "9k"}, "9k"),
        ({"gold": "wit"}, "wit"),
        ({"num_rounds": 3, "num_updates": 6}, "--num_rounds must be even"),
        ({"num_updates": 5}, "--num_rounds must be even"),
        ({"batch_size": 5}, "multiple of --num_samples"),
        ({"beta": -1.0}, "--beta"),
        ({"taste": 0.0}, "--taste"),
        ({"sizes": ()}, "at least one of"),
        ({"data_dir": "nowhere"}, "nowhere"),
    ],
)
def test_bad_flags(tmp_path, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        run.experiment(tiny(tmp_path / "new", **changes))
    assert not (tmp_path / "new").exists()


@pytest.fixture
def small_corpus(monkeypatch, corpus: Corpus):
    monkeypatch.setattr(run, "load_corpus", lambda data_dir: corpus)


@pytest.mark.slow
def test_pretraining_is_resumed_to_the_bit(tmp_path, corpus: Corpus, monkeypatch):
    config = tiny(tmp_path)
    language = family_language(config, "8k", corpus)
    monkeypatch.setattr(family, "CHUNK", 3)
    assert family.num_steps(config) > 6
    whole, loss = family.load_family_member(
        config, language, corpus, tmp_path / "whole", lambda steps: None
    )
    assert loss < np.log(len(corpus.alphabet)) - 0.1

    class Killed(Exception):
        pass

    def kill(steps: int) -> None:
        done.append(steps)
        if len(done) == 2:
            raise Killed

    done: list[int] = []
    with pytest.raises(Killed):
        family.load_family_member(config, language, corpus, tmp_path / "cut", kill)
    done = [0, 0]
    resumed, again = family.load_family_member(
        config, language, corpus, tmp_path / "cut", done.append
    )
    assert done[2] == 6 and sum(done) == family.num_steps(config) and again == loss
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    read, _ = family.load_family_member(
        config, language, corpus, tmp_path / "cut", lambda steps: None
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(read), strict=True):
        np.testing.assert_array_equal(one, other)


def test_curves_are_compared_seed_by_seed(tmp_path):
    """Shares that rise with the size by known slopes; a pretrained model is on no curve."""
    config, rng = Config(), np.random.default_rng(0)
    parameters = {"8k": 1e4, "16k": 1e5, "other": 1e6}
    rises = {"sft": 0.5, "rl": 0.8}
    noise = rng.normal(scale=0.1, size=10)
    results = {
        name: {
            arm: {
                "gold": np.full((10, 2), rise * np.log10(number)),
                "share": 1 / (1 + np.exp(-(rise * np.log10(number) + noise[:, None] - [[4, 3]]))),
                "kl": np.ones((10, 2)),
                "length": np.ones((10, 2)),
            }
            for arm, rise in rises.items()
        }
        for name, number in parameters.items()
    }
    facts = {name: {"parameters": int(number)} for name, number in parameters.items()}
    for name in ("8k", "16k"):
        facts[name]["loss"] = 2.0
    found = summary.summarise(config, results, facts)
    for arm, rise in rises.items():
        for measure in ("log_odds", "gold"):
            assert found["slopes"][arm][measure]["mean"] == pytest.approx(rise)
    less = found["differences"]["rl - sft"]
    assert less["log_odds_slope"]["mean"] == pytest.approx(0.3)
    assert less["log_odds_slope"]["high"] - less["log_odds_slope"]["low"] < 1e-9  # paired
    assert less["share_by_size"].keys() == {"8k", "16k"} and less["share"]["low"] > 0
    plot.draw(config, results, found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert found["arms"] == ["sft", "rl"]
    assert summary.share_table(config, found).row_count == 2
    assert summary.model_table(found).row_count == 4
    assert len(summary.difference_table(found).columns) == 4 + 2
    own = results["other"]
    expected = np.mean(own["rl"]["share"][:, -1] - own["sft"]["share"][:, -1])
    assert found["beside"].keys() == {"other"}
    assert found["beside"]["other"]["rl - sft"]["mean"] == pytest.approx(expected)
    with_base = summary.summarise(
        config, {"other": {**own, "base": own["sft"]}}, {"other": facts["other"]}
    )
    assert with_base["beside"]["other"]["rl - base"]["mean"] == pytest.approx(expected)
    assert summary.beside_table(with_base).row_count == 3


def always(judge: task.Judge, said: list[str]) -> task.Judge:
    """A judge whose reference says the same to every prompt."""
    return judge._replace(draw=lambda prompts, key: [said for _ in prompts])


def test_people_choose_by_luce_and_the_best_is_the_demonstration(tmp_path, corpus: Corpus):
    """The first of a pair is 100 nats better, or worse; the third of three responses is best."""
    config = tiny(tmp_path)
    rewards = {"good": 50.0, "bad": -50.0, "best": 60.0}
    judge = task.Judge(corpus, lambda texts: np.array([rewards[r] for _, r in texts]), None)
    for number, (said, choice) in enumerate(
        [(["good", "bad", "best"], 0), (["bad", "good", "best"], 1)]
    ):
        path = tmp_path / "tasks" / f"{number}.json"
        found = task.load_task(config, always(judge, said), number, path)
        assert len(found.prompts) == 8 and found.choices == [choice] * 8
        assert found.pairs == [said[:2]] * 8 and found.demonstrations == ["best"] * 8
        assert found.references == [said] * 4
        assert set(found.prompts) <= set(prompts_of(config, corpus.text))
        assert set(found.evaluated) <= set(prompts_of(config, corpus.held_out))
        nobody = judge._replace(draw=None)
        assert task.load_task(config, nobody, number, path) == found  # read, and not drawn


def test_people_are_torn_between_responses_of_equal_reward(tmp_path, corpus: Corpus):
    config = tiny(tmp_path, num_prompts=40)
    judge = task.Judge(corpus, lambda texts: np.zeros(len(texts)), None)
    found = task.load_task(config, always(judge, ["a", "b"]), 0, tmp_path / "0.json")
    assert 8 < sum(found.choices) < 32


def test_the_share_preferred_is_the_mean_over_prompts_and_references(seed: task.Task):
    rewards = {"x": 2.0, "y": -1.0, " a": 0.0, " b": 1.0}
    judge = task.Judge(None, lambda texts: np.array([rewards[text] for _, text in texts]), None)
    mean, share = process._judged(judge, seed, ["x", "y", "y", "y"])
    expected = [1 / (1 + np.exp(-gap)) for gap in (2.0, 1.0, *[-1.0, -2.0] * 3)]
    assert mean == pytest.approx(-0.25) and share == pytest.approx(np.mean(expected))


@pytest.mark.slow
def test_the_best_of_n_is_chosen_by_the_learned_reward(
    setting: objectives.Setting, seed: task.Task, monkeypatch
):
    """Of two responses; the learned reward is right at three prompts, and at one there is a tie."""
    language = setting.language
    texts = [[" love", " slave", " friend", " sword"], [" a", " l", " s", " f"]]
    of_gold = [[1.0, -1.0, 1.0, -2.0], [0.0, 0.0, 1.0, 0.0]]
    gold_of = dict(zip([*texts[0], *texts[1]], [*of_gold[0], *of_gold[1]], strict=True))
    learned = [[3.0, -3.0, 0.0, 5.0], [0.0, 0.0, 1.0, 0.0]]
    drawn = [
        encode_documents(language, [*zip(seed.evaluated, row, strict=True)], most=12, max_length=12)
        for row in texts
    ]
    said = lambda *of_all: arms.Said(jax.tree.map(lambda leaf: leaf[None], drawn[of_all[4]]), None)
    monkeypatch.setattr(arms, "speak", said)
    rewards = lambda params, seen: np.array(
        [next(v for v, d in zip(learned, drawn, strict=True) if (d.tokens == seen.tokens[0]).all())]
    )
    run = arms.Programs(None, {}, None, rewards)
    monkeypatch.setattr(arms, "programs", lambda _: run)
    judge = task.Judge(
        None, lambda rows: np.array([gold_of.get(text, 0.0) for _, text in rows]), None
    )
    here = model.Model(setting, language.lm.init(jax.random.key(0)), [seed], [])
    found = process._best_of_n(here, judge, [seed], jnp.zeros(1), None, None)
    # " love", " l", " s" and " sword" are chosen; people would choose the other one of the last
    # pair, and are torn between those of the third, which does not count.
    assert found["gold"] == pytest.approx(np.mean([1.0, 0.0, 1.0, -2.0]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["kl"] == pytest.approx(np.log(2) - 0.5)
    assert found["length"] == pytest.approx(np.mean([6, 3, 3, 7]))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"models": 1}, {"gold": "humour"}])
def test_a_pretrained_folder_and_a_reward_of_votes(
    tmp_path, small_corpus, make_model, changes: dict
):
    if changes == {"models": 1}:
        make_model(tmp_path / "small", 1)
        changes = {"models": (str(tmp_path / "small"),), "sizes": ()}
    try:
        run.experiment(tiny(tmp_path, arms=("base", "rl"), **changes))
    except UsageError as error:
        if "gold" in changes and "ukp_humour" in str(error):
            pytest.skip("the votes are missing")
        raise
    of_gold = tmp_path / changes.get("gold", "kindness")
    found = json.loads((of_gold / "summary.json").read_text())["models"]
    assert "slopes" not in found
    (name,) = found
    assert name == ("small" if "models" in changes else "8k")
    (place,) = (of_gold / "arms").iterdir()
    assert place.name.startswith(name) and (place.name == name) == ("gold" in changes)
    assert 0 < found[name]["rl"]["share"]["mean"] < 1


def test_more_prompts_than_the_text_has_are_refused(tmp_path, small_corpus):
    with pytest.raises(UsageError, match="fewer than 100000"):
        run.experiment(tiny(tmp_path / "new", num_evaluated=100_000))
    assert not (tmp_path / "new").exists()


def test_pretrained_models_of_one_name_are_refused(tmp_path, make_model, small_corpus):
    folders = [str(tmp_path / place / "same") for place in "ab"]
    for folder in folders:
        make_model(Path(folder), 1)
    with pytest.raises(UsageError, match="found same: rename"):
        run.experiment(tiny(tmp_path / "new", models=tuple(folders)))


@pytest.mark.slow
def test_a_run_writes_its_folder_and_is_resumed(tmp_path, small_corpus):
    """A part that is there is not computed again; arms may be added."""
    first = ("base", "sft", "rl")
    run.experiment(tiny(tmp_path, arms=first))
    folder = tmp_path / "kindness"
    before = json.loads((folder / "summary.json").read_text())
    assert before["arms"] == list(first) and "slopes" not in before
    kept = folder / "arms" / "8k" / "sft_0.npz"
    time = kept.stat().st_mtime_ns
    (folder / "arms" / "8k" / "rl_0.npz").unlink()
    run.experiment(tiny(tmp_path, arms=ARMS))
    assert kept.stat().st_mtime_ns == time
    after = json.loads((folder / "summary.json").read_text())
    for arm in first:  # rl was computed again, to the same numbers
        assert after["models"]["8k"][arm] == before["models"]["8k"][arm]
    base = after["models"]["8k"]["base"]
    assert base["kl"]["mean"] == pytest.approx(0.0, abs=1e-3)
    assert after["models"]["8k"]["prompting"]["kl"]["mean"] != 0
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = {arm: {int(r["step"]) for r in rows if r["arm"] == arm} for arm in ARMS}
    assert steps["base"] == {4} and steps["sft"] == {2, 4} and steps["sft_rl"] == {4}
    assert (folder / "scaling.png").stat().st_size > 10_000
    with pytest.raises(UsageError, match="num_prompts"):
        run.experiment(tiny(tmp_path, num_prompts=9))
