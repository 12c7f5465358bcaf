"""Whole runs on meshes of 8 devices give the numbers of one device, and resume on other meshes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from shatter import models
from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import train
from shatter.cli.finetune.config import Config
from tests.cli.finetune.runs import finetune, history, pair, trained_params, write

pytestmark = pytest.mark.slow  # whole runs

BATCH = 16
ADAPTERS = "adapter_model.safetensors"


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> Config:
    """Returns a run of 5 steps whose model has its output in every metric."""
    texts = ["ab", "cdeff", "a", "gh", "bbb", "ha", "dd", "ce", "fgh", "ee", "h", "gg"]
    rows = [
        pair("ab "[: n % 4], texts[n % 12] + texts[n % 7], texts[-1 - n % 12] + "c")
        | {"weight": 1 + n % 3}
        for n in range(40)
    ]
    return Config(
        model_name_or_path=str(model_folder),
        dataset_name=write(tmp_path / "pairs.jsonl", rows),
        eval_dataset_name=(write(tmp_path / "held.jsonl", rows[:9]),),
        output_dir=str(tmp_path / "run"),
        objective="dpo",
        mesh="data=1",
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=8,
        learning_rate=1e-3,
        max_steps=5,
        max_length=16,
        logging_steps=1,
        save_steps=2,
        kl_samples=8,
        kl_batch_size=8,
        kl_length=4,
        num_generations=0,
        seed=0,
    )


def on(config: Config, mesh: str, shards: int, folder: str) -> Config:
    """Returns the run with the same batches on another mesh."""
    return dataclasses.replace(
        config,
        mesh=mesh,
        per_device_train_batch_size=BATCH // shards,
        output_dir=str(Path(config.output_dir).parent / folder),
    )


def assert_near(one: Config, other: Config) -> None:
    assert_near_history(one, other)
    for a, b in zip(*(jax.tree.leaves(trained_params(run)) for run in (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def assert_near_history(one: Config, other: Config) -> None:
    for a, b in zip(history(one), history(other), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_every_mesh_gives_the_numbers_of_one_device(config: Config):
    """Those with samples and a reference, on the mesh of all axes; the others as a reward model."""
    finetune(config)
    every = on(config, "data=2,fsdp=2,tensor=2", 4, "every")
    finetune(every)
    assert_near(config, every)
    plain = dataclasses.replace(config, objective="reward_model")
    plain = dataclasses.replace(plain, output_dir=f"{config.output_dir}_plain")
    finetune(plain)
    for mesh, shards in (("data=8", 8), ("fsdp=8", 8), ("data=4,tensor=2", 4)):
        other = on(plain, mesh, shards, mesh)
        finetune(other)
        assert_near(plain, other)


def test_adapters_on_a_base_of_int8_are_those_of_one_device(config: Config):
    config = dataclasses.replace(config, use_peft=True, lora_r=2, base_dtype="int8")
    finetune(config)
    other = on(config, "data=2,fsdp=2,tensor=2", 4, "parts")
    finetune(other)
    assert_near_history(config, other)
    one, same = (load_file(f"{run.output_dir}/model/{ADAPTERS}") for run in (config, other))
    assert one.keys() == same.keys()
    for name, values in one.items():
        np.testing.assert_allclose(same[name], values, atol=1e-5, err_msg=name)


def test_a_gemma_on_a_mesh_is_that_of_one_device(config: Config, tmp_path: Path):
    """It has a window in its first block, two bases of positions, and all norms of the family."""
    llama, _, tokenizer = models.load_pretrained(config.model_name_or_path)
    gemma = dataclasses.replace(
        llama,
        num_layers=2,
        activation="gelu",
        qk_norm=True,
        post_norms=True,
        norm_offset=True,
        scaled_embedding=True,
        attention_size=4,
        window=3,
        full_layers=(1,),
        local_theta=100.0,
    )
    params = jax.jit(models.transformer(gemma).init)(jax.random.key(3))
    models.save_pretrained(tmp_path / "gemma", gemma, params, tokenizer)
    config = dataclasses.replace(
        config,
        model_name_or_path=str(tmp_path / "gemma"),
        objective="reward_model",
        eval_dataset_name=(),
    )
    finetune(config)
    other = on(config, "data=2,fsdp=2,tensor=2", 4, "parts")
    finetune(other)
    assert_near(config, other)


class Killed(Exception):
    pass


def kill_after(step: int, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs until a step is about to begin."""
    take = train._take_step

    def stop(run, position):
        if position.step == step:
            raise Killed
        return take(run, position)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "_take_step", stop)
        finetune(config)


def test_a_checkpoint_of_one_mesh_goes_on_on_others(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """It does so in the same folder with exactly the examples that are left."""
    config = dataclasses.replace(config, objective="reward_model")
    finetune(config)
    moved = on(config, "fsdp=4,tensor=2", 4, "moved")
    kill_after(3, moved, monkeypatch)
    other_batch = dataclasses.replace(moved, per_device_train_batch_size=2)
    with pytest.raises(UsageError, match=r"batch_size: found 16, wanted 8; .*per_device_train"):
        finetune(other_batch)
    moved = on(config, "data=8", 8, "moved")
    kill_after(4, moved, monkeypatch)
    assert "mesh: found 'fsdp=4,tensor=2', now 'data=8'" in caplog.text
    moved = on(config, "data=1", 1, "moved")
    finetune(moved)
    assert_near(config, moved)


def test_moments_of_the_optimiser_lie_where_the_parameters_do(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    states = []
    save = train.checkpoints.save
    monkeypatch.setattr(
        train.checkpoints, "save", lambda *args: (states.append(args[2]), save(*args))
    )
    config = on(config, "fsdp=4,tensor=2", 4, "parts")
    finetune(dataclasses.replace(config, objective="reward_model", max_steps=3))
    for path, leaf in jax.tree.leaves_with_path(states[0]):
        if jax.tree_util.keystr(path).endswith("['mlp_out']['kernel']"):
            assert np.prod(leaf.sharding.shard_shape(leaf.shape)) == leaf.size // 8
