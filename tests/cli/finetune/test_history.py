"""Damage in metrics.jsonl and in checkpoints is found and named, and no run goes on from it."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter.cli.common.binary import UsageError
from shatter.cli.finetune import checkpoints
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.history import Log, warn_of_collapse

FACTS = {"devices": "2: cpu", "jax": "0.1"}


def row(step: int) -> dict[str, float]:
    return {"step": step, "epoch": step / 4, "loss": 0.5 / (1 + step)}


def written(folder: Path, num_rows: int) -> Log:
    log = Log(folder)
    log.truncate(0)
    for step in range(num_rows):
        log.add(row(step))
    return log


@pytest.mark.parametrize("name", ["loss", "eval_held/accuracy"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_row_holds_what_json_cannot_say(tmp_path: Path, name: str, value: float):
    log = written(tmp_path, 1)
    with pytest.raises(UsageError, match=rf"{name} is {value} at step 3: the run went astray"):
        log.add(row(3) | {name: value})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


DAMAGE = {
    "binary": (b"\xff\xfe\x00\n", r"metrics\.jsonl:2 is damaged \("),
    "cut": (b'{"step": 1, "ep\n', r"metrics\.jsonl:2 is damaged \("),
    "null": (b"null\n", r"metrics\.jsonl:2 is damaged: expected an object with step and epoch"),
    "list": (b"[1, 2]\n", r"metrics\.jsonl:2 .*found b'\[1, 2\]"),
    "empty": (b"\n", r"metrics\.jsonl:2 is damaged \("),
    "no step": (b'{"epoch": 1.0}\n', r"metrics\.jsonl:2 .*step and epoch"),
    "a text": (b'{"step": 1, "epoch": "x"}\n', r"metrics\.jsonl:2 .*a number for epoch, found 'x'"),
    "deep": (b"[" * 100_000 + b"\n", r"metrics\.jsonl:2 is damaged \("),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_rows_are_named_by_line(tmp_path: Path, kind: str):
    written(tmp_path, 3)
    file = tmp_path / "metrics.jsonl"
    content, message = DAMAGE[kind]
    lines = file.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + content + lines[2]
    file.write_bytes(damaged)
    log = Log(tmp_path)
    with pytest.raises(UsageError, match=message):
        log.truncate(2)
    assert file.read_bytes() == damaged
    log.truncate(1)  # what comes after is cut away
    assert log.rows == [row(0)] and file.read_bytes() == lines[0]


def test_rows_are_those_that_were_written(tmp_path: Path):
    """A changed digit is still valid JSON; only a checksum shows it."""
    digests = [written(tmp_path, n).digest() for n in range(4)]
    log = Log(tmp_path)
    log.truncate(2, digests[2])
    assert log.rows == [row(0), row(1)] and log.digest() == digests[2]
    log.add(row(2))
    assert log.digest() == digests[3]
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text().replace("0.25", "0.35"))
    assert json.loads(file.read_text().splitlines()[1])["loss"] == 0.35
    with pytest.raises(UsageError, match=r"metrics\.jsonl is damaged: the sha256 of its first 3"):
        Log(tmp_path).truncate(3, digests[3])
    Log(tmp_path).truncate(1, digests[1])
    with pytest.raises(UsageError, match="has 1 rows and the checkpoint was made after 3"):
        Log(tmp_path).truncate(3, digests[3])


def state(step: int) -> dict[str, jax.Array]:
    return {"params": jnp.arange(50.0) * step, "key": jax.random.key(step)}


def save_some(folder: Path, limit: int = 2) -> Config:
    """Makes a run that saved after 2, 4 and 6 steps, with a row before each."""
    config = Config(save_total_limit=limit)
    log = written(folder, 0)
    with checkpoints.open_checkpoints(config, folder) as saved:
        for step in (2, 4, 6):
            log.add(row(step))
            loop = {"facts": FACTS, "tokens": 7 * step}
            checkpoints.save(saved, step, state(step), loop, log)
    return config


def resumed(config: Config, folder: Path, facts: dict = FACTS) -> checkpoints.Resumed | None:
    with checkpoints.open_checkpoints(config, folder) as saved:
        found = checkpoints.resume(config, saved, state(0), facts, Log(folder))
        assert found is None or max(saved.steps()) == found.step
        return found


def flip_a_bit(file: Path, at: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    file.write_bytes(content)


def files_of(folder: Path, step: int) -> list[Path]:
    files = (folder / "checkpoints" / str(step)).rglob("*")
    return sorted(file for file in files if file.is_file())


def test_a_run_goes_on_from_the_newest_sound_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    config = save_some(tmp_path)
    for _ in range(2):
        found = resumed(config, tmp_path)
        assert found is not None and (found.step, found.loop["tokens"]) == (6, 42)
        np.testing.assert_array_equal(found.state["params"], state(6)["params"])
    arrays = [file for file in files_of(tmp_path, 6) if "state" in file.parts]
    largest = max(arrays, key=lambda file: file.stat().st_size)
    flip_a_bit(largest)
    found = resumed(config, tmp_path)
    assert found is not None and found.step == 4
    np.testing.assert_array_equal(found.state["params"], state(4)["params"])
    (record,) = caplog.records
    assert str(largest) in record.message and "goes on from the checkpoint before" in record.message
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    flip_a_bit(tmp_path / "metrics.jsonl", 0.1)
    with pytest.raises(UsageError, match=r"metrics\.jsonl.* is damaged.*delete .* to begin again"):
        resumed(config, tmp_path)


def test_one_flipped_bit_of_any_file_is_found(tmp_path: Path):
    config = save_some(tmp_path, limit=1)
    names = [file.relative_to(tmp_path) for file in files_of(tmp_path, 6)]
    for name in names:
        file = tmp_path / name
        before = file.read_bytes()
        if not before:
            continue
        for at in (0.0, 0.5, 1.0):
            flip_a_bit(file, at)
            with pytest.raises(UsageError, match="There is no other checkpoint to go on from"):
                resumed(config, tmp_path)
            file.write_bytes(before)
    assert resumed(config, tmp_path).step == 6  # type: ignore[union-attr]


def test_a_checkpoint_that_is_asked_for_must_be_there_and_be_this_run_s(tmp_path: Path):
    save_some(tmp_path)
    asked = lambda step: Config(save_total_limit=2, resume_from_checkpoint=step)
    with pytest.raises(UsageError, match=r"=5: there are checkpoints of the steps \[4, 6\]"):
        resumed(asked(5), tmp_path)
    other = FACTS | {"jax": "0.2"}
    with pytest.raises(UsageError, match=r"\(jax: found '0\.1', now '0\.2'\).*go on with the same"):
        resumed(asked(4), tmp_path, other)
    found = resumed(asked(4), tmp_path)
    assert found is not None and found.step == 4  # and the later one is gone
    assert resumed(Config(), tmp_path).step == 4  # type: ignore[union-attr]


def test_a_damaged_checkpoint_that_is_asked_for_costs_no_other(tmp_path: Path):
    save_some(tmp_path)
    flip_a_bit(files_of(tmp_path, 6)[-1])
    with pytest.raises(UsageError, match="Leave out --resume_from_checkpoint") as error:
        resumed(Config(save_total_limit=2, resume_from_checkpoint=6), tmp_path)
    assert "delete" not in str(error.value)
    assert resumed(Config(), tmp_path).step == 4  # type: ignore[union-attr]


def test_a_renamed_checkpoint_is_not_gone_on_from(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Otherwise a run would seem complete after steps that were never made."""
    save_some(tmp_path)
    (tmp_path / "checkpoints" / "6").rename(tmp_path / "checkpoints" / "60")
    assert resumed(Config(), tmp_path).step == 4  # type: ignore[union-attr]
    assert "checkpoints/60 is that of step 6, renamed" in caplog.text


def test_a_policy_that_collapses_is_warned_of_once(caplog: pytest.LogCaptureFixture):
    rows: list[dict[str, float]] = [{"eval_x/reward": 1.0}]
    for entropy in (0.5, 0.009, 0.001, 0.02):
        warn_of_collapse(rows, {"entropy": entropy})
        rows.append({"entropy": entropy})
    warn_of_collapse(rows, {"loss": 1.0})
    (record,) = caplog.records
    assert "the entropy of a token is 0.0090 nats. Raise --beta" in record.getMessage()
    warn_of_collapse(rows, {"entropy": 0.0})
    assert len(caplog.records) == 2


def test_metrics_that_cannot_be_read_are_named(tmp_path: Path):
    save_some(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"metrics\.jsonl cannot be read: Is a directory.*delete"):
        resumed(Config(), tmp_path)


def test_what_a_killed_save_left_is_removed(tmp_path: Path):
    config = save_some(tmp_path)
    left = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    assert resumed(config, tmp_path).step == 6  # type: ignore[union-attr]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert not any(re.search("tmp", name) for name in names), names
