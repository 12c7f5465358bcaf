"""The section online: steps of GRPO of equally long completions, in shatter and in TRL."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmark import checkpoint, config, grpo, pinned, run
from experiments.benchmark.config import Gpt2
from shatter.cli.common.binary import UsageError


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny"
    make_model(path, 2)
    # Without a post-processor transformers adds no token, whatever this setting says.
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"add_bos_token": False}))
    return str(path)


@pytest.fixture(autouse=True)
def prompts(monkeypatch: pytest.MonkeyPatch):
    """Prompts in the letters of the tiny model."""
    monkeypatch.setattr(grpo, "PROMPTS", ("abc", "fade"))
    grpo.prepare.cache_clear()


@pytest.fixture
def sizes(folder: str) -> Gpt2:
    return checkpoint.sizes(folder)


def spec(folder: str, work: str, **more) -> dict:
    return {"work": work, "folder": folder, "cores": 1, "seed": 0, "repeats": 2} | more


def test_the_reward_counts_different_words():
    found = grpo.different_words(["p", "p"], ["a cat and a dog", ""], completion_ids=[])
    assert found == [4.0, 0.0]


def test_the_flags_are_those_of_the_command_and_of_trl(sizes: Gpt2):
    whole = grpo.make_config(sizes, 3, False, "prompts.jsonl")
    assert (whole.objective, whole.loss_type, whole.scale_rewards) == ("grpo", "dapo", "group")
    assert not whole.use_peft and whole.beta == 0.0 and whole.num_iterations == 1
    adapters = grpo.make_config(sizes, 3, True, "prompts.jsonl")
    assert adapters.use_peft and len(adapters.lora_target_modules) == 7


@pytest.mark.slow
def test_completions_have_all_tokens_and_their_rewards(sizes: Gpt2):
    """Also a model whose end token is likely writes on."""
    own = grpo.prepare(sizes, 0, False)
    batch = grpo.policy_batch(own)
    assert batch.tokens.shape[:2] == (2, grpo.NUM_GENERATIONS)
    assert np.all(batch.mask.sum(-1) == sizes.num_new_tokens)
    for tokens, rewards in zip(batch.tokens, batch.rewards, strict=True):
        texts = [own.task.model.tokenizer.decode(row[-sizes.num_new_tokens :]) for row in tokens]
        gains = np.asarray(grpo.different_words([], texts))
        np.testing.assert_allclose(rewards, gains - gains.mean(), atol=1e-6)
    other = grpo.policy_batch(own._replace(config=grpo.make_config(sizes, 1, False, "")))
    assert np.any(other.tokens != batch.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("is_lora", [False, True])
def test_a_step_is_the_update_after_the_completions(sizes: Gpt2, is_lora: bool):
    """The whole step and the parts that are timed alone give the same gradient."""
    own = grpo.prepare(sizes, 0, is_lora)
    state, update = grpo.online.make_update(own.config, own.task, 1)
    start = jax.tree.map(np.array, state.params)
    key = jax.random.fold_in(jax.random.key(0), grpo.online._ROLLOUTS)
    draw = grpo.rollouts.make_draw(own.config, own.task.model, own.config.num_generations)
    key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    part = grpo.online.draw_part(own.config, own.task, draw, state.params, key, own.batch)
    _, measured = update(state, [own.batch])
    after, step = grpo._learner(own)
    after = after._replace(params=jax.tree.map(jax.numpy.asarray, start))
    _, metrics = step(after, grpo.online.step_batches(own.config, [part])[0])
    norm = float(metrics["grad_norm"])
    assert norm > 1e-3 and norm == pytest.approx(float(measured.metrics[0]["grad_norm"]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["LoRA GRPO", "GRPO, completions", "GRPO, update"])
def test_without_the_extras_ours_alone_is_measured(work: str, folder: str, monkeypatch):
    monkeypatch.setattr(pinned, "absent", lambda packages: ["trl"])
    answer = json.loads(json.dumps(checkpoint.answer(spec(folder, work))))
    assert [(way["name"], way["units"]) for way in answer["ways"]] == [("shatter", 8)]
    assert np.shape(answer["seconds"]) == (2, 1) and np.all(np.asarray(answer["seconds"]) > 0)
    assert answer["notes"][-1].startswith("trl not installed, so their rows are left out: ")


@pytest.mark.slow
@pytest.mark.parametrize("work", checkpoint.ONLINE)
@pytest.mark.filterwarnings("default")  # what TRL and its dependencies warn of is theirs
def test_both_libraries_do_the_same_work(work: str, folder: str):
    for package in checkpoint.ONLINE[work].packages:
        pytest.importorskip(package)
    from experiments.benchmark import grpo_trl

    grpo_trl.trainer.cache_clear()
    answer = checkpoint.answer(spec(folder, work))
    assert len(answer["ways"]) == checkpoint.num_ways(work) == 2
    assert np.shape(answer["seconds"]) == (2, 2)
    if "," not in work:
        assert answer["notes"][0].startswith("of the same completions, log-probs of tokens are ")


def test_the_section_needs_a_folder(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--sections online needs --checkpoint, .*, found None"):
        run.check(config.Config(sections=("online",)))
    chosen = config.Config(sections=("online",), checkpoint=str(tmp_path))
    run.check(chosen)
    cores = {cores for _, cores in checkpoint.places()}
    ends = [f", {n} core{'s' * (n > 1)}" for n in sorted(cores)]
    names = [work + end for end in ends for work in checkpoint.ONLINE]
    assert [part.name for part in run.plan(chosen)] == names
