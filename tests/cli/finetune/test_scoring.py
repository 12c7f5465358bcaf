"""Held-out measures, the reference and samples are right, and means of nothing are absent."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import evaluation, learning, measures, plan, reference, run
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.task import Task, load_task
from shatter.data import Encoded, Row
from tests.cli.finetune.runs import history, write


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> Config:
    """Returns a run on comparisons of several lengths, ties, votes and a ranking of three."""
    texts = ["ab", "cdeff", "a", "gh", "bbbbbbb", "ha", "dd", "ce", "fgh", "ee", "h", "gg"]
    rows = [
        {"prompt": "ab "[: n % 4], "chosen": one, "rejected": other + "c", "weight": 1 + n % 3}
        for n, (one, other) in enumerate(zip(texts, texts[::-1], strict=True))
    ]
    rows.append({"prompt": "c", "completions": ["a", "bc", "d"], "ranks": [1, 2, 2], "weight": 5})
    rows.append({"prompt": "d", "completions": ["a", "bc"], "votes": [3, 2, 4]})
    return Config(
        model_name_or_path=str(model_folder),
        dataset_name=write(tmp_path / "pairs.jsonl", rows),
        output_dir=str(tmp_path / "run"),
        mesh="data=1",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        learning_rate=3e-3,
        max_steps=2,
        max_length=24,
        logging_steps=1,
        kl_samples=6,
        kl_batch_size=3,
        kl_length=4,
        num_generations=0,
        seed=0,
    )


def encoded(*rows: tuple) -> list[Encoded]:
    """Returns rows made of (lengths of completions, ranks, weight, votes)."""
    found = []
    for n, (lengths, ranks, weight, votes) in enumerate(rows):
        row = Row("", tuple("abcd"[: len(ranks)]), ranks, weight, source=f"f:{n}", votes=votes)
        texts = tuple(np.ones(length, np.int32) for length in lengths)
        found.append(Encoded(np.ones(1, np.int32), texts, ranks, weight, votes, row))
    return found


def test_demonstrations_are_judged_by_the_loss_of_sft():
    """The measure is the weighted mean over the tokens of the best completions, as in training."""
    rows = encoded(
        ((4,), (1,), 1.0, None), ((2, 5, 3), (1, 2, 1), 3.0, None), ((2, 2), (-1, -1), 7.0, None)
    )
    log_probs = np.array([[-8.0, 0, 0], [-3.0, -50.0, -6.0], [-1.0, -1.0, 0]])
    found = measures.demonstration_scores(rows, log_probs)
    assert found == pytest.approx({"token_log_loss": (1 * 2.0 + 3 * (1.5 + 2.0) / 2) / 4})
    assert measures.demonstration_scores(rows[2:], log_probs[2:, :2]) == {}
    turns = [rows[0]._replace(skipped=(3,))]  # the loss counts the last token alone
    assert measures.demonstration_scores(turns, log_probs[:1, :1])["token_log_loss"] == 8.0


@pytest.mark.slow
def test_held_out_demonstrations_are_measured_by_a_run(config: Config, tmp_path: Path):
    """They may have one completion where the training rows have several."""
    rows = [{"prompt": "a", "completion": "bcd"}, {"prompt": "", "completion": "h"}]
    held = write(tmp_path / "demos.jsonl", rows)
    config = dataclasses.replace(config, objective="sft", eval_dataset_name=(held,), max_steps=1)
    task = load_task(config)
    summary = run.finetune(config, task)
    found = summary["before"]["eval_demos/token_log_loss"]
    refs = reference.reference_log_probs(
        config, task.model, {"demos": task.held_out["demos"].encoded}
    )
    np.testing.assert_allclose(found, -np.mean(refs["demos"][:, 0] / [4, 2]), rtol=1e-6)
    names = {name for name in summary["after"] if name.startswith("eval_demos/")}
    assert names == {"eval_demos/token_log_loss"}  # no choice, so no log_loss of choices
    assert [row["step"] for row in history(config)] == [0, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_model_is_its_own_reference_before_the_first_step(config: Config, bf16: bool):
    """This holds to the bit, on several devices and in batches of mixed lengths."""
    config = dataclasses.replace(
        config,
        objective="dpo",
        bf16=bf16,
        mesh="data=2",
        per_device_train_batch_size=2,
        max_steps=1,
    )
    run.finetune(config, load_task(config))
    first = history(config)[1]
    assert first["rewards/margins"] == first["rewards/accuracies"] == 0.0
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0.0
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_devices", "batch_size", "accumulation"),
    [(2, 2, 4), (1, 4, 6)],  # the second has fewer batches in an epoch than in an update
)
def test_an_update_is_the_same_by_devices_and_accumulated_batches(
    config: Config, tmp_path: Path, num_devices: int, batch_size: int, accumulation: int
):
    """Metrics and evaluations agree for a run with votes, ties, a ranking and a regulariser."""
    base = dataclasses.replace(
        config, kl_weight=0.5, per_device_train_batch_size=16, kl_batch_size=5, max_steps=-1
    )
    cut = dataclasses.replace(
        base,
        mesh=f"data={num_devices}",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        output_dir=str(tmp_path / "cut"),
    )
    for one in (base, cut):
        run.finetune(one, load_task(one))
    for whole, several in zip(history(base), history(cut), strict=True):
        assert whole.keys() == several.keys()
        for name in whole:
            np.testing.assert_allclose(
                several[name], whole[name], rtol=2e-4, atol=2e-5, err_msg=name
            )


@pytest.fixture
def task(config: Config) -> Task:
    return load_task(config)


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [1, 5, 9, 40])
def test_samples_begin_with_bos_and_stay_within_the_positions(task: Task, num_tokens: int):
    """Prompts that leave no room for the response lose the tokens after BOS."""
    positions = task.model.config.max_length
    assert positions == 32
    prompt = np.array([1, *(3 + np.arange(num_tokens) % 5)], np.int32)
    length = positions - 6
    draw = learning.make_sampler(task.model, num_samples=2, max_length=length)
    found = draw(task.model.params, jax.random.key(0), [prompt, prompt[:2]])
    kept = [1, *prompt[1:][-5:]]
    for tokens, mask, valid in zip(found.tokens[:2], found.mask[:2], found.valid[:2], strict=True):
        assert tokens[valid & ~mask].tolist() == kept
        assert valid.sum() <= positions


@pytest.mark.parametrize("length", [32, 33, 500])
def test_responses_that_leave_no_room_for_a_prompt_are_refused(task: Task, length: int):
    message = rf"--kl_length and --max_completion_length must be at most 31.*found {length}"
    with pytest.raises(UsageError, match=message):
        learning.make_sampler(task.model, num_samples=1, max_length=length)


def test_a_reference_that_is_not_finite_is_refused(config: Config, task: Task):
    train_rows = task.train.encoded
    refs = reference.reference_log_probs(config, task.model, {"train": train_rows})["train"]
    reference.check_reference(config, task.model, train_rows, refs)
    row = plan.first_epoch(config, train_rows)[0][1][0]
    for value in (np.nan, np.inf):
        wrong = refs.copy()
        wrong[row, 1] = value
        with pytest.raises(UsageError, match=rf"pairs\.jsonl:.*{value}.*would not be 0"):
            reference.check_reference(config, task.model, train_rows, wrong)


def test_the_reference_is_kept_by_all_that_decides_its_bits(
    config: Config, task: Task, monkeypatch: pytest.MonkeyPatch
):
    made = []
    monkeypatch.setattr(
        reference.cache, "cached_arrays", lambda name, make: made.append(name) or {"log_probs": 0}
    )
    splits = {"train": task.train.encoded}
    for change in (
        {},
        {"learning_rate": 1.0},
        {"per_device_train_batch_size": 3},
        {"mesh": "data=2", "per_device_train_batch_size": 2},
        {"seed": 7},
    ):
        reference.reference_log_probs(dataclasses.replace(config, **change), task.model, splits)
    half = task.model._replace(config=dataclasses.replace(task.model.config, dtype="bfloat16"))
    reference.reference_log_probs(config, half, splits)
    first, *rest = task.train.encoded
    turns = {"train": [first._replace(skipped=(1,) + (0,) * len(first.completions[1:])), *rest]}
    reference.reference_log_probs(config, task.model, turns)
    assert made[0] == made[1] and len(set(made)) == 6


def test_scores_that_are_not_finite_end_the_run_in_words(config: Config, tmp_path: Path):
    held = write(tmp_path / "held.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "cc"}])
    config = dataclasses.replace(config, eval_dataset_name=(held,))
    task = load_task(config)
    judge = evaluation.make_evaluate(config, task, {"held": np.zeros((1, 2), np.float32)})
    start = learning.start(config, task.model, jax.random.key(0))
    assert judge(start).metrics.keys() >= {"eval_held/log_loss", "eval_held/accuracy"}
    broken = jax.tree.map(lambda leaf: leaf * np.nan, start)
    with pytest.raises(UsageError, match="scores of held are not finite: the run went astray"):
        judge(broken)


def test_what_a_resumed_run_must_share_is_named(config: Config, task: Task):
    facts = plan.plan_facts(config, task)
    assert {
        "devices",
        "batches",
        "jax",
        "jaxlib",
        "backend",
        "processes",
        "shatter",
    } <= facts.keys()
    assert plan.plan_facts(dataclasses.replace(config, learning_rate=1.0), task) == facts
    changes = {"devices": {"mesh": "data=2"}, "batches": {"per_device_train_batch_size": 3}}
    for name, change in changes.items():
        assert plan.plan_facts(dataclasses.replace(config, **change), task)[name] != facts[name]
