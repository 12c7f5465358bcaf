"""Tiny runs of the objectives of reinforcement learning: folders, resumption, failures, flags."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from shatter import models
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console
from shatter.cli.finetune import online, prompts, rewards
from shatter.cli.finetune.checks import check
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.dry_run import describe
from shatter.cli.finetune.rewards import Completion
from shatter.cli.finetune.task import load_task
from tests.cli.finetune.runs import assert_same, finetune, history, trained_params, write

MODULE = """
calls, fail_at, broken = 0, None, None

def count(prompts, completions):
    global calls
    calls += 1
    if calls == fail_at:
        if broken == "raise":
            raise RuntimeError("out of order")
        return [float("nan")] * len(completions) if broken == "nan" else [1.0]
    return [text.count("a") for text in completions]

def length(prompts, completions):
    return [-len(text) for text in completions]
"""
ROWS = [
    {"prompt": "ab"},
    {"prompt": "a", "chosen": " c", "rejected": " d"},
    {"prompt": "abc", "completion": "d", "label": False},
    {"chosen": "ab c", "rejected": "ab d"},
    {"prompt": "", "completions": ["a", "b"], "ranks": [1, 1]},
]


@pytest.fixture
def config(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    (tmp_path / "tiny_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_rewards", raising=False)
    # A module that is written twice in a second with as many letters would be read from its cache.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return Config(
        model_name_or_path=str(model_folder),
        dataset_name=write(tmp_path / "train.jsonl", ROWS),
        eval_dataset_name=(write(tmp_path / "held.jsonl", ROWS[:3]),),
        objective="rloo",
        reward_function=("tiny_rewards:count",),
        output_dir=str(tmp_path / "run"),
        mesh="data=1",
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        max_length=16,
        learning_rate=3e-2,
        beta=0.01,
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        seed=0,
    )


@pytest.mark.slow
def test_a_run_raises_its_reward_and_writes_its_folder(config: Config):
    config = dataclasses.replace(config, max_steps=12, num_generations=8, save_steps=100)
    summary = finetune(config)
    before, after = summary["before"], summary["after"]
    assert after["eval_held/reward"] > before["eval_held/reward"] + 0.5
    assert before["eval_held/kl"] == pytest.approx(0.0, abs=1e-5)
    assert after["eval_held/kl"] > 0.1
    rows = [row for row in history(config) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row in rows:
        assert row["sampling/logp_difference_max"] < 1e-4
        assert row["clip_ratio/region_mean"] == 0.0
        assert 1 <= row["completions/min_length"] <= row["completions/mean_length"] <= 4
        assert row["reward"] == row["rewards/tiny_rewards:count/mean"]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert 1.0 < rows[0]["entropy"] < np.log(12)
    folder = Path(config.output_dir)
    assert "after:" in (folder / "samples.txt").read_text()
    assert (folder / "finetune.png").stat().st_size > 10_000
    assert "checkpoints" not in {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_run_warns_of_a_policy_that_collapses(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("shatter.cli.finetune.history.COLLAPSED", 9.0)
    finetune(config)
    assert caplog.text.count("hardly more than one thing to a prompt") == 1


class Killed(BaseException):
    """Stands for a kill, because nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "rloo", "use_peft": True, "lora_r": 2},
        {"objective": "grpo", "num_iterations": 2, "gradient_accumulation_steps": 2},
        {"objective": "posterior", "num_generations": 1, "beta": 0.1, "temperature": 0.8},
        {"objective": "ppo", "num_iterations": 2, "gradient_accumulation_steps": 2, "beta": 0.0},
        {"objective": "ppo", "num_generations": 1, "use_peft": True, "lora_r": 2, "lam": 0.9},
    ],
    ids=["rloo", "grpo", "posterior", "ppo", "ppo of adapters"],
)
def test_a_killed_run_resumes_to_the_bit(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
):
    """Killed in the fourth step, it goes on from the checkpoint of the second."""
    config = dataclasses.replace(config, eval_steps=2, **changes)
    finetune(config)
    killed = dataclasses.replace(config, output_dir=str(tmp_path / "killed"))
    steps = 0

    def step_batches(*args, original=online.step_batches):
        nonlocal steps
        steps += 1
        if steps > 3:
            raise Killed
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(online, "step_batches", step_batches)
        with pytest.raises(Killed):
            finetune(killed)
    assert (Path(killed.output_dir) / "checkpoints").exists()
    finetune(killed)
    assert history(killed) == history(config)
    assert not list(Path(config.output_dir).rglob("reward_head*"))  # ppo's head is no result
    if not config.use_peft:
        assert_same(trained_params(killed), trained_params(config))
        return
    base = load_task(config).model.config
    one, other = (models.load_lora(Path(c.output_dir) / "model", base)[0] for c in (killed, config))
    assert_same(one, other)
    assert history(config)[0]["eval_held/kl"] == 0.0  # the base is the reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "fail_at", "eval_steps", "saved", "message"),
    [
        (
            "raise",
            4,  # in step 3; the first call is the evaluation before
            -1,
            {"2"},
            "tiny_rewards:count raised RuntimeError: out of order, for the prompt '",
        ),
        (
            "few",
            5,  # in step 4
            -1,
            {"2", "3"},
            r"expected [48] numbers, one for each completion, found 1: \[1\.0\]; the first was ",
        ),
        (
            "nan",
            4,  # in the evaluation after step 2
            2,
            {"2"},
            r"expected a finite number, found nan, for the prompt .*train\.jsonl:\d\) and the",
        ),
        ("raise", 6, -1, {"2", "4"}, "out of order"),  # in the evaluation after training
    ],
    ids=["step", "later step", "evaluation", "last evaluation"],
)
def test_a_reward_that_fails_ends_the_run_which_then_goes_on(
    config: Config,
    tmp_path: Path,
    broken: str,
    fail_at: int,
    eval_steps: int,
    saved: set[str],
    message: str,
):
    """No finished step is lost: the run ends with the bits of one that never failed."""
    config = dataclasses.replace(
        config, eval_dataset_name=(), kl_samples=2, eval_steps=eval_steps, save_total_limit=3
    )
    finetune(config)
    failing = dataclasses.replace(config, output_dir=str(tmp_path / "failing"))
    file = Path("tiny_rewards.py")
    defect = f"fail_at, broken = 0, {fail_at}, '{broken}'"
    file.write_text(MODULE.replace("fail_at, broken = 0, None, None", defect))
    del sys.modules["tiny_rewards"]
    with pytest.raises(UsageError, match=message):
        finetune(failing)
    checkpoints = Path(failing.output_dir) / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == saved
    file.write_text(MODULE)  # mended
    del sys.modules["tiny_rewards"]
    finetune(failing)
    assert history(failing) == history(config)
    assert_same(trained_params(failing), trained_params(config))


@pytest.mark.slow
def test_a_reward_model_of_an_earlier_run_trains_a_policy(config: Config, tmp_path: Path):
    """Its pairs prefer texts with more a's; the reward model's score rises by training on it."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd"), 4)) for _ in range(64)]
    pairs = [
        {
            "prompt": "a",
            "chosen": max(one, other, key=lambda t: t.count("a")),
            "rejected": min(one, other, key=lambda t: t.count("a")),
        }
        for one, other in zip(texts[::2], texts[1::2], strict=True)
        if one.count("a") != other.count("a")
    ]
    judge = Config(
        model_name_or_path=config.model_name_or_path,
        dataset_name=write(tmp_path / "pairs.jsonl", pairs),
        objective="reward_model",
        output_dir=str(tmp_path / "judge"),
        mesh="data=1",
        learning_rate=3e-2,
        max_length=16,
        max_steps=20,
        use_peft=True,
        lora_r=2,
    )
    finetune(judge)
    config = dataclasses.replace(
        config,
        reward_function=("tiny_rewards:length",),
        reward_model=str(tmp_path / "judge" / "model"),
        reward_weights=(1.0, 0.0),
        max_steps=12,
        num_generations=8,
    )
    summary = finetune(config)
    assert summary["after"]["eval_held/reward"] > summary["before"]["eval_held/reward"] + 0.3
    row = history(config)[1]
    assert row["reward"] == pytest.approx(row["rewards/reward_model/mean"])
    assert row["rewards/tiny_rewards:length/mean"] < 0


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rloo", "ppo"])
def test_several_devices_draw_and_learn_what_one_does(
    config: Config, tmp_path: Path, objective: str
):
    config = dataclasses.replace(config, max_steps=2, per_device_train_batch_size=4)
    config = dataclasses.replace(config, objective=objective)  # type: ignore[arg-type]
    finetune(config)
    mesh = {"mesh": "data=2,fsdp=2", "per_device_train_batch_size": 1}
    several = dataclasses.replace(config, output_dir=str(tmp_path / "several"), **mesh)
    several = dataclasses.replace(several, per_device_eval_batch_size=1)
    finetune(several)
    for one, other in zip(history(config), history(several), strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_prompts_are_taken_from_rows_of_every_layout(config: Config):
    task = load_task(config)
    decoded = [task.model.tokenizer.decode(row.prompt.tolist()) for row in task.train.encoded]
    assert [text.removeprefix("<s>") for text in decoded] == ["ab", "a", "abc", "ab", ""]
    assert [row.completions[0].tolist() for row in task.train.encoded] == [[2]] * 5
    assert task.held_out["held"].report.kept == 3


def test_prompts_without_room_are_named_or_left_out(config: Config, tmp_path: Path):
    file = write(tmp_path / "long.jsonl", [{"prompt": "abcdefgh" * 2}, {"prompt": "ab"}])
    config = dataclasses.replace(config, dataset_name=file)
    message = (
        r"long\.jsonl:1: prompt: expected at most 12 tokens, because --max_length=16 has to hold "
        r"--max_completion_length=4 more, found 17 tokens; raise --max_length, or pass --max_prom"
    )
    with pytest.raises(UsageError, match=message):
        load_task(config)
    skipped = load_task(dataclasses.replace(config, on_bad_row="skip")).train
    assert (len(skipped.encoded), skipped.report.skipped) == (1, 1)
    cut = load_task(dataclasses.replace(config, max_prompt_length=12)).train
    assert [len(row.prompt) for row in cut.encoded] == [12, 3]
    assert cut.report.truncated_prompts == 1
    assert prompts.longest_prompt(config) == 12


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "ab"}], r"prompts\.jsonl:1: row: expected one layout, found the fields text"),
        ([{"prompt": 3}], r"prompts\.jsonl:1: prompt: expected "),
        ([], "no good one is left"),
    ],
)
def test_files_without_prompts_are_named(config: Config, tmp_path: Path, rows: list, message: str):
    file = write(tmp_path / "prompts.jsonl", rows)
    with pytest.raises(UsageError, match=message):
        load_task(dataclasses.replace(config, dataset_name=file))
    with pytest.raises(UsageError, match=r"--dataset_name: no file nowhere\.jsonl"):
        load_task(dataclasses.replace(config, dataset_name="nowhere.jsonl"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reward_function": ()},
            "--objective=rloo needs a reward, found neither --reward_model nor --reward_function: ",
        ),
        (
            {"reward_weights": (1.0, 2.0)},
            r"--reward_weights must be one number for each of the 1 rewards \(tiny_rewards:count\)",
        ),
        ({"num_generations": 1}, "--num_generations must be at least 2 with --objective=rloo"),
        (
            {"num_generations": 0, "objective": "posterior"},
            "--num_generations must be at least 1 with --objective=posterior, which draws",
        ),
        ({"max_completion_length": 16}, "--max_length must be above --max_completion_length=16"),
        ({"max_prompt_length": 13}, "--max_prompt_length must be at most 12, because"),
        ({"beta": 0.0, "objective": "posterior"}, "--beta must be positive, found 0.0"),
        ({"condition_on": "group"}, "--condition_on=group belongs to objectives that learn from"),
        ({"multihost": True}, "--multihost does not go with --objective=rloo: run one process"),
        (
            {"loss_type": "grpo"},
            "--loss_type=grpo belongs to --objective=grpo, found --objective=rloo: leave",
        ),
        (
            {"objective": "posterior", "num_iterations": 2},
            "--num_iterations=2 belongs to --objective=rloo, grpo or ppo, found --objective=post",
        ),
        (
            {"objective": "ppo", "epsilon_high": 0.3},
            "--epsilon_high=0.3 belongs to --objective=rloo or grpo, found --objective=ppo",
        ),
        ({"lam": 0.5}, "--lam=0.5 belongs to --objective=ppo, found --objective=rloo: leave --lam"),
        ({"objective": "ppo", "lam": 1.5}, "--lam must be .*, found 1.5"),
        ({"objective": "ppo", "num_generations": 0}, "--num_generations must be at least 1 with"),
        (
            {"objective": "dpo"},
            r"--reward_function=.* belongs to --objective=rloo, grpo, ppo or posterior, found --o",
        ),
    ],
    ids=str,
)
def test_flags_that_do_not_belong_together_are_refused(config: Config, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        check(dataclasses.replace(config, **changes))


def test_only_posterior_needs_a_kl(config: Config):
    for objective in ("rloo", "grpo", "ppo"):
        check(dataclasses.replace(config, beta=0.0, objective=objective))


def test_ppo_without_rlax_names_the_extra(config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"ppo needs rlax, .* pip install 'shatter-lm\[rl\]'"):
        check(dataclasses.replace(config, objective="ppo"))


@pytest.mark.slow
def test_completions_that_are_learned_from_are_part_of_the_run(config: Config):
    """For the other objectives these flags describe samples.txt, and may change."""
    config = dataclasses.replace(config, max_steps=1, eval_dataset_name=(), kl_samples=2)
    finetune(config)
    with pytest.raises(UsageError, match="num_generations: found 4, wanted 3"):
        finetune(dataclasses.replace(config, num_generations=3))


def test_a_dry_run_writes_nothing(config: Config, capsys: pytest.CaptureFixture):
    describe(config, load_task(config), open_console())
    shown = capsys.readouterr().out
    assert "The first prompt, token by token: <s>ab" in shown
    assert "steps of 2 prompts (4 completions) on" in shown
    assert not Path(config.output_dir).exists()


def test_conversations_are_prompts_and_functions_see_their_messages(config: Config, tmp_path: Path):
    chat = [{"role": "user", "content": "ab"}]
    file = write(tmp_path / "chats.jsonl", [{"prompt": chat}])
    changes = {"dataset_name": file, "chat_template": "plain", "max_length": 32}
    task = load_task(dataclasses.replace(config, **changes))
    row = task.train.encoded[0]
    assert len(row.prompt) == 20  # User: ab, Assistant:
    seen = []
    reward = lambda prompts, completions: seen.append(prompts) or [0.0]
    completion = Completion(row.row.prompt, "c", "", [*row.prompt, 2], 20, True)
    rewards._call("own:reward", reward, [completion])
    assert seen == [[chat]]
