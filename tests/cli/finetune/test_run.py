"""Tiny runs of `shatter finetune`: folders, resumption to the bit, the reference, bad input."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import data, documents, models
from shatter.cli.common import cache, run_folder, votes
from shatter.cli.common.binary import UsageError
from shatter.cli.common.progress import open_console
from shatter.cli.finetune import batches, learning, plan, reference, run, train
from shatter.cli.finetune.checks import check, free_fields
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.dry_run import describe
from shatter.cli.finetune.pretrained import load_model
from shatter.cli.finetune.task import load_task
from tests.cli.finetune.runs import assert_same, finetune, history, trained_params, write

ROOT = Path(__file__).resolve().parents[3]
CHARACTERS = "abcdefgh "


def comparisons(num: int, seed: int = 0) -> list[dict]:
    """Returns comparisons in which texts with more a's are mostly preferred, some with votes."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(num):
        one, other = (
            "".join(rng.choice(list(CHARACTERS[:-1]), rng.integers(2, 9))) + str("abc"[k]) * k
            for k in (0, 1)
        )
        prompt = "ab " if n % 2 else ""
        if n % 5 == 0:
            rows.append({"prompt": prompt, "completions": [one, other], "votes": [2, 1, 1]})
        elif one.count("a") > other.count("a"):
            rows.append({"prompt": prompt, "chosen": one, "rejected": other})
        else:
            rows.append({"prompt": prompt, "chosen": other, "rejected": one})
    return rows


@pytest.fixture
def tiny(model_folder: Path, tmp_path: Path) -> Config:
    return Config(
        model_name_or_path=str(model_folder),
        dataset_name=write(tmp_path / "pairs.jsonl", comparisons(24)),
        eval_dataset_name=(write(tmp_path / "held.jsonl", comparisons(10, seed=1)),),
        output_dir=str(tmp_path / "run"),
        mesh="data=1",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        learning_rate=3e-3,
        max_steps=6,
        max_length=16,
        save_steps=2,
        logging_steps=3,
        kl_samples=8,
        kl_batch_size=4,
        kl_length=4,
        num_generations=0,
        max_completion_length=4,
        seed=0,
    )


def test_a_run_writes_its_folder(
    tiny: Config, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    tiny = dataclasses.replace(tiny, kl_weight=0.1, num_generations=1)
    run.experiment(tiny)
    folder = Path(tiny.output_dir)
    names = {path.name for path in folder.iterdir()}
    expected = {"config.json", "metrics.jsonl", "metrics.csv", "samples.txt"}
    expected |= {"summary.json", "summary.json.sha256"}
    assert expected | {"finetune.png", "model"} <= names
    assert "checkpoints" not in names
    assert (folder / "finetune.png").stat().st_size > 10_000
    rows = history(tiny)
    assert [row["step"] for row in rows] == [0, 3, 6, 6]
    before, after = rows[0], rows[-1]
    # At step 0 the model is its reference: KL is 0, up to the rounding of sums.
    assert abs(before["kl"]) < 1e-5 and before["kl_forward"] == 0.0
    assert after["kl"] > 1e-3 and after["kl_forward"] > 1e-3
    for measure in ("log_loss", "accuracy", "calibration_error", "share_kl"):
        assert 0 <= before[f"eval_held/{measure}"]
    assert rows[1]["kl"] > 0
    assert 0 < rows[2]["learning_rate"] < rows[1]["learning_rate"] < tiny.learning_rate
    assert "before:" in (folder / "samples.txt").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["parameters"] == summary["trained"] > 0
    assert "eval_held/log_loss" in capsys.readouterr().out
    # Another tool's loader would find a model here; its log-probs are the trained ones.
    config, params, tokenizer = models.load_pretrained(folder / "model")
    tokens = jnp.asarray([[1, *tokenizer.encode("abc"), 2]])
    found = models.transformer(config).apply(params, tokens)
    assert np.all(np.isfinite(found))
    # A run that is complete is only read.
    monkeypatch.setattr(train, "train", None)
    assert finetune(tiny) == summary


ALIKE = [pytest.param(name, marks=pytest.mark.slow) for name in ("ipo", "slic", "sft")]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "reward_model", *ALIKE])
def test_every_objective_runs(tiny: Config, objective: str):
    config = dataclasses.replace(
        tiny, objective=objective, max_steps=2, logging_steps=1, eval_dataset_name=()
    )
    finetune(config)
    rows = history(config)
    first = rows[1]  # its metrics are those before the first step
    assert np.isfinite(first["loss"])
    if objective in ("dpo", "ipo"):
        assert abs(first["rewards/margins"]) < 1e-5 and first["rewards/accuracies"] == 0.0
        expected = {"dpo": np.log(2), "ipo": (0.5 / config.beta) ** 2}[objective]
        assert 0.5 * expected < first["loss"] < 1.01 * expected  # ties cost nothing
    head = Path(config.output_dir) / "model" / "reward_head.safetensors"
    assert head.exists() == (objective == "reward_model")


class Killed(BaseException):
    """Stands for a kill, because nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill_at", "changes"),
    [
        pytest.param(1, {}, marks=pytest.mark.slow),
        (5, {"gradient_accumulation_steps": 2, "kl_weight": 0.2, "save_steps": 2}),
    ],
    ids=["before the first checkpoint", "after two"],
)
def test_a_killed_run_resumes_to_the_bit(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int, changes: dict
):
    """Parameters, metrics and evaluations equal those of the uninterrupted run."""
    tiny = dataclasses.replace(tiny, **changes)
    finetune(tiny)
    killed = dataclasses.replace(tiny, output_dir=str(tmp_path / "killed"))
    steps = 0

    def step_batch(*args, original=batches.step_batch):
        nonlocal steps
        steps += 1
        if steps > kill_at * tiny.gradient_accumulation_steps:
            raise Killed
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "step_batch", step_batch)
        with pytest.raises(Killed):
            finetune(killed)
    assert (Path(killed.output_dir) / "checkpoints").exists()
    finetune(killed)
    assert history(killed) == history(tiny)
    assert_same(trained_params(killed), trained_params(tiny))


@pytest.mark.slow
def test_answers_to_one_comparison_share_its_forward_pass(tiny: Config):
    """The loss equals that of one row per answer, and weights of equal answers are added."""
    task = load_task(tiny)
    assert len(task.train.encoded) == 24
    assert task.train.weight.shape == (24, 2)
    assert task.train.weight.sum() == 19 + 5 * 3  # of votes 2, 1 and a tie, which teaches nothing
    batch = data.collate(task.train.encoded, range(8), length=16, num_slots=2)
    shared = batches.step_batch(batch, np.zeros((24, 2), np.float32), task.train)
    answers = [(n, a) for n in range(8) for a in range(2) if shared.weight[n, a]]
    assert len(answers) == 10
    apart = jax.tree.map(lambda leaf: leaf[[n for n, _ in answers]], shared)
    rows, columns = zip(*answers, strict=True)
    apart = apart._replace(
        ranks=shared.ranks[rows, columns][:, None], weight=shared.weight[rows, columns][:, None]
    )
    objective = jax.jit(learning.make_objective(tiny, task.model))
    start = learning.start(tiny, task.model, jax.random.key(0))
    frozen = learning.Frozen(None, None)
    one, other = (objective(start, frozen, jax.random.key(0), x) for x in (shared, apart))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
def test_adapters_are_trained_alone_and_saved_for_peft(tiny: Config):
    config = dataclasses.replace(
        tiny,
        use_peft=True,
        lora_r=2,
        lora_target_modules=("q_proj", "v_proj"),
        kl_weight=0.1,
        eval_dataset_name=(),
    )
    summary = finetune(config)
    assert 0 < summary["trained"] < summary["parameters"] / 2
    folder = Path(config.output_dir) / "model"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in folder.iterdir()
    }
    task = load_task(config)
    adapters, lora = models.load_lora(folder, task.model.config)
    assert lora == task.model.lora
    merged = models.merge_lora(task.model.params, adapters, lora)
    tokens = jnp.asarray([[1, 3, 4, 5, 2]])
    unmerged = models.with_lora(task.model.params, adapters, lora)
    one, other = (task.model.lm.apply(params, tokens) for params in (merged, unmerged))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(one - task.model.lm.apply(task.model.params, tokens)).max() > 1e-4


@pytest.mark.slow
def test_slices_of_a_vocabulary_train_as_whole_logits_do(
    tiny: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    config = dataclasses.replace(tiny, kl_weight=0.1, max_steps=3, eval_dataset_name=())
    finetune(config)
    monkeypatch.setattr("shatter.factored.sizes.MULTIPLIED_OUT_UP_TO", 0)
    monkeypatch.setattr("shatter.factored.sizes.SLICE_SIZE", 500)
    # A setting that changes nothing, so that programs are compiled anew.
    sliced = dataclasses.replace(config, delta=1.5, output_dir=str(tmp_path / "sliced"))
    finetune(sliced)
    for one, other in zip(history(config), history(sliced), strict=True):
        assert one.keys() == other.keys()
        shared = [name for name in one if "seconds" not in name]
        for name in shared:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_adapters_are_trained_on_a_base_of_integers(tiny: Config):
    config = dataclasses.replace(
        tiny, use_peft=True, lora_r=2, base_dtype="int8", objective="dpo", eval_dataset_name=()
    )
    finetune(config)
    first = history(config)[1]
    assert abs(first["rewards/margins"]) < 0.1  # the reference is the model as it is held
    narrow = load_task(config).model
    wide = load_task(dataclasses.replace(config, base_dtype="float32")).model
    size = lambda params: sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert size(narrow.params) < 0.6 * size(wide.params)
    adapters, lora = models.load_lora(Path(config.output_dir) / "model", wide.config)
    tokens = jnp.asarray([[1, 3, 4, 5, 2]])
    one, other = (
        model.lm.apply(models.with_lora(model.params, adapters, lora), tokens)
        for model in (narrow, wide)
    )
    assert 0 < np.abs(one - other).max() < 0.1 * np.std(other)


@pytest.mark.parametrize(
    ("family", "targets", "message"),
    [("llama", ("q_proj", "k_project"), "k_project"), ("gpt2", ("query", "value"), "qkv")],
)
def test_adapters_that_could_not_be_saved_are_refused_before_training(
    tiny: Config, tmp_path: Path, family: str, targets: tuple[str, ...], message: str
):
    if family == "gpt2":
        sizes = models.TransformerConfig(
            vocab_size=12, max_length=32, width=8, num_layers=1, tied=True, head_bias=False
        )
        params = jax.jit(models.transformer(sizes).init)(jax.random.key(0))
        tokenizer = models.load_tokenizer(tiny.model_name_or_path)
        models.save_pretrained(tmp_path / "gpt2", sizes, params, tokenizer)
        tiny = dataclasses.replace(tiny, model_name_or_path=str(tmp_path / "gpt2"))
    config = dataclasses.replace(tiny, use_peft=True, lora_target_modules=targets)
    with pytest.raises(UsageError, match=rf"--lora_target_modules: .*{message}"):
        load_task(config)


def test_the_reference_is_computed_once(tiny: Config, monkeypatch: pytest.MonkeyPatch, tmp_path):
    task = load_task(tiny)
    splits = {"train": task.train.encoded}
    first = reference.reference_log_probs(tiny, task.model, splits)["train"]

    @jax.jit
    def log_prob(tokens, mask):
        return documents.log_prob(task.model.lm.apply(task.model.params, tokens), tokens, mask)

    for row, found in zip(task.train.encoded, first, strict=True):
        for completion, value in zip(row.completions, found, strict=True):
            ids = np.concatenate([row.prompt, completion])
            at = np.arange(16)  # what follows the completion does not matter
            mask = (at >= len(row.prompt)) & (at < len(ids))
            tokens = jnp.asarray(np.pad(ids, (0, 16 - len(ids))))
            np.testing.assert_allclose(log_prob(tokens, mask), value, atol=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(reference, "over_rows", None)  # nothing is computed again
        again = reference.reference_log_probs(tiny, task.model, splits)["train"]
    np.testing.assert_array_equal(again, first)
    other = jax.tree.map(lambda leaf: leaf * 1.1, task.model.params)
    changed = task.model._replace(params=other, weights=None)
    assert np.abs(reference.reference_log_probs(tiny, changed, splits)["train"] - first).max() > 0.1
    reference.check_reference(tiny, task.model, task.train.encoded, first)
    row = plan.first_epoch(tiny, task.train.encoded)[0][1][2]  # of the first batch
    source = re.escape(task.train.encoded[row].row.source)
    with pytest.raises(UsageError, match=rf"{source} .*the margin at step 0 would not be 0"):
        wrong = first + np.where(np.arange(len(first)) == row, 0.5, 0.0)[:, None]
        reference.check_reference(tiny, task.model, task.train.encoded, wrong.astype(np.float32))
    assert len(list((cache.cache_dir() / "reference").iterdir())) == 2


def test_dry_run_compiles_and_writes_nothing(
    tiny: Config, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    compiled = []
    listener = lambda name, seconds, **about: compiled.append(name)
    task = load_task(tiny)  # loading may
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        describe(tiny, task, open_console())
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert not [name for name in compiled if "backend_compile" in name]
    shown = capsys.readouterr().out
    assert "parameters" in shown and "steps of 4 comparisons" in shown
    monkeypatch.setattr("shatter.factored.sizes.MULTIPLIED_OUT_UP_TO", 0)
    monkeypatch.setattr("shatter.factored.sizes.SLICE_SIZE", 10**9)
    describe(tiny, task, open_console())
    megabytes = lambda text: int(re.search(r"Memory: about ([\d,]+) MB", text)[1].replace(",", ""))
    assert megabytes(capsys.readouterr().out) >= 12_000 > megabytes(shown)
    assert "[</s>]" in shown and "<s>[" in shown
    run.experiment(dataclasses.replace(tiny, dry_run=True))
    assert not Path(tiny.output_dir).exists()


@pytest.mark.slow
def test_bad_rows_end_the_run_or_are_written_down(tiny: Config, tmp_path: Path):
    rows = comparisons(12)
    rows[3] = {"prompt": "ab", "chosen": "same", "rejected": "same"}
    file = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(UsageError, match=r"bad\.jsonl:4: rejected: expected"):
        load_task(dataclasses.replace(tiny, dataset_name=file))
    config = dataclasses.replace(tiny, dataset_name=file, on_bad_row="skip", max_steps=1)
    config = dataclasses.replace(config, objective="reward_model")
    summary = finetune(config)
    assert summary["rows"]["train"]["skipped"] == 1
    (line,) = (Path(config.output_dir) / "bad_rows_train.jsonl").read_text().splitlines()
    assert json.loads(line)["source"].endswith("bad.jsonl:4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset_name": "nowhere.jsonl"},
            r"--dataset_name: no file nowhere\.jsonl\. Pass a file of preferences \(\.jsonl, ",
        ),
        ({"eval_dataset_name": ("nowhere.jsonl",)}, r"--eval_dataset_name: no file nowhere\.jsonl"),
        ({"model_name_or_path": "nowhere"}, r"--model_name_or_path=nowhere: "),
        # Older versions took these names of a model and of data that research needs.
        (
            {"model_name_or_path": "stories260k"},
            "--model_name_or_path=stories260k: there is no folder stories260k: expected one with",
        ),
        ({"dataset_name": "ukp_humour"}, r"--dataset_name: no file ukp_humour\. Pass a file of "),
        (
            {"max_length": 64},
            r"--max_length must be at most 32, because .*tiny has 32 positions, found 64",
        ),
        ({"chat_template": "nowhere.jinja"}, r"no file nowhere\.jinja \(known by name: plain\)"),
    ],
    ids=str,
)
def test_what_is_not_there_is_named(tiny: Config, changes: dict, message: str):
    config = dataclasses.replace(tiny, **changes)
    with pytest.raises(UsageError, match=message):
        load_task(config)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_the_fused_kernel_is_refused_where_there_is_no_gpu(tiny: Config):
    config = dataclasses.replace(tiny, fused_attention=True, bf16=True)
    with pytest.raises(UsageError, match="--fused_attention needs an NVIDIA GPU, found devices"):
        load_model(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "--beta must be positive, found 0.0"),
        ({"max_steps": 0}, "--max_steps must be -1 or at least 1, found 0"),
        ({"label_smoothing": 0.5}, r"--label_smoothing must be in \[0, 0.5\), found 0.5"),
        (
            {"utility": "mean", "objective": "dpo"},
            "--utility=mean belongs to --objective=ilhf, found --objective=dpo",
        ),
        (
            {"utility": "ratio", "objective": "sft"},
            "--utility=ratio belongs to --objective=ilhf, found --objective=sft",
        ),
        (
            {"utility": "sum", "objective": "dpo"},
            "--utility=sum belongs to --objective=ilhf, found --objective=dpo: leave --utility "
            "out, which nothing reads, or change --objective$",
        ),
        (
            {"utility_scale": 2.0},
            "--utility_scale=2.0 belongs to --utility=mean or ratio, found --utility=tilt: .* or "
            "change --utility$",
        ),
        (
            {"utility_scale": 2.0, "utility": "sum"},
            "--utility_scale=2.0 belongs to --utility=mean or ratio, found --utility=sum: ",
        ),
        (
            {"utility_scale": 2.0, "objective": "ipo"},
            "--utility_scale=2.0 belongs to --objective=ilhf, found --objective=ipo: ",
        ),
        (
            {"num_examples": 2, "condition_on": "group"},
            "--num_examples=2 belongs to --condition_on=examples, found --condition_on=group: .* "
            "or change --condition_on$",
        ),
        (
            {"condition_dropout": 0.5},
            "--condition_dropout=0.5 belongs to --condition_on=group, annotator or examples, found "
            "--condition_on=none: .* or change --condition_on$",
        ),
        (
            {"kl_weight": 1.0, "objective": "dpo"},
            "--kl_weight belongs to --objective=ilhf, found --objective=dpo",
        ),
        ({"fused_attention": True}, "--fused_attention needs --bf16, found no --bf16"),
        ({"per_device_train_batch_size": 0}, "must be at least 1, found 0"),
        ({"warmup_ratio": 2.0}, r"--warmup_ratio must be in \[0, 1\], found 2.0"),
    ],
    ids=str,
)
def test_flags_that_cannot_be_are_refused(tiny: Config, changes: dict, message: str):
    with pytest.raises(UsageError, match=message):
        check(dataclasses.replace(tiny, **changes))


@pytest.mark.parametrize("objective", ["ilhf", "dpo", "reward_model"])
def test_the_utility_of_an_earlier_run_counts_for_ilhf_alone(tiny: Config, objective: str):
    """Its default was sum once, which runs of all objectives wrote down."""
    earlier = dataclasses.replace(tiny, objective=objective, utility="sum")

    def open_folder(config: Config) -> None:
        run_folder.begin_or_resume(
            config.output_dir, config, free=free_fields(config), flag="--output_dir"
        )

    open_folder(earlier)
    now = dataclasses.replace(earlier, utility="tilt")
    if objective == "ilhf":
        message = (
            r"utility: found 'sum', wanted 'tilt'.* to resume it; the default was sum in older "
            "versions: pass --utility=sum$"
        )
        with pytest.raises(UsageError, match=message):
            open_folder(now)
        open_folder(earlier)
        with pytest.raises(UsageError, match=r"wanted 'mean'.* to resume it$"):
            open_folder(dataclasses.replace(earlier, utility="mean"))
    else:
        check(now)
        open_folder(now)


def test_a_flag_that_an_older_version_took_unread_may_be_left_out(tiny: Config):
    """It was recorded; now it is refused, and nothing that is learned differs without it."""
    for number, changes in enumerate(({"utility": "sum"}, {"objective": "dpo"})):
        folder = f"{tiny.output_dir}{number}"
        now = dataclasses.replace(tiny, output_dir=folder, **changes)
        check(now)
        for config in (dataclasses.replace(now, utility_scale=3.0), now):
            run_folder.begin_or_resume(
                folder, config, free=free_fields(config), flag="--output_dir"
            )


@pytest.mark.slow
def test_resumption_can_be_refused_or_begin_earlier(tiny: Config, tmp_path: Path):
    never = dataclasses.replace(
        tiny, resume_from_checkpoint="never", max_steps=1, objective="reward_model"
    )
    finetune(never)
    with pytest.raises(UsageError, match="holds a run: choose another --output_dir"):
        finetune(never)
    with pytest.raises(UsageError, match=r"max_steps: found 1, wanted 6"):
        finetune(dataclasses.replace(tiny, objective="sft"))
    fresh = dataclasses.replace(tiny, output_dir=str(tmp_path / "f"), resume_from_checkpoint=4)
    with pytest.raises(UsageError, match=r"there are checkpoints of the steps \[\]"):
        finetune(fresh)


@pytest.mark.slow
def test_a_run_that_goes_astray_says_so(tiny: Config, monkeypatch: pytest.MonkeyPatch):
    def step_batch(batch, *args, original=batches.step_batch):
        found = original(batch, *args)
        broken = np.where(batch.row == 5, np.nan, 1.0).astype(np.float32)
        return found._replace(weight=found.weight * broken[:, None])

    monkeypatch.setattr(batches, "step_batch", step_batch)
    with pytest.raises(UsageError, match=r"loss is nan at batch \d: the run went astray"):
        finetune(dataclasses.replace(tiny, objective="reward_model"))


@pytest.mark.slow
def test_rankings_of_three_are_judged(tiny: Config, tmp_path: Path):
    """By Plackett-Luce log-loss, by the order of pairs, and by the shares of the votes."""
    rows = [
        {"prompt": "", "completions": ["ab", "cd", "ee"], "ranks": [1, 2, 2]},
        {"prompt": "", "completions": ["ab", "cd", "ef"], "votes": [3, 1, 0]},
    ]
    file = write(tmp_path / "k.jsonl", rows)
    config = dataclasses.replace(tiny, eval_dataset_name=(file,))
    encoded = load_task(config).held_out["k"].encoded
    assert [row.weight for row in encoded] == [1, 3, 1]
    utilities = np.array([[1.0, 0.0, -1.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    found = votes.held_out_scores([row.row for row in encoded], utilities)
    first = [
        -np.log(np.exp(u[k]) / np.exp(u).sum()) for u, k in zip(utilities, (0, 0, 1), strict=True)
    ]
    np.testing.assert_allclose(
        found["ranking_log_loss"], np.average(first, weights=[1, 3, 1]), rtol=1e-5
    )
    np.testing.assert_allclose(found["ranking_accuracy"], (1 * 2 + 3 * 1.5 + 1 * 1.5) / (2 * 5))
    model = np.exp(utilities[1]) / np.exp(utilities[1]).sum()
    expected = 0.75 * np.log(0.75 / model[0]) + 0.25 * np.log(0.25 / model[1])
    np.testing.assert_allclose(found["ranking_share_kl"], expected, rtol=1e-9)


@pytest.mark.slow
def test_a_process_that_is_killed_resumes_to_the_bit(tiny: Config, tmp_path: Path):
    """It is killed by SIGKILL three times at odd moments."""
    tiny = dataclasses.replace(tiny, max_steps=60, save_steps=1, logging_steps=7)
    finetune(tiny)
    killed = dataclasses.replace(tiny, output_dir=str(tmp_path / "killed"))
    flags = [
        f"--{field.name}={getattr(killed, field.name)}"
        for field in dataclasses.fields(killed)
        if getattr(killed, field.name) != field.default and field.name != "eval_dataset_name"
    ]
    command = [sys.executable, "-m", "shatter.cli", "finetune", *flags]
    command += ["--eval_dataset_name", *killed.eval_dataset_name]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kills = 0
    while True:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        checkpoints, began = Path(killed.output_dir) / "checkpoints", time.monotonic()
        seen = set(checkpoints.glob("*"))
        while process.poll() is None and kills < 3:
            new = set(checkpoints.glob("*")) - seen
            if len(new) > 1 or time.monotonic() - began > 120:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.003)
        if process.wait() == 0:
            break
    assert kills == 3
    assert history(killed) == history(tiny)
    assert_same(trained_params(killed), trained_params(tiny))
