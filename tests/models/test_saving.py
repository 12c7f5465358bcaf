"""A save succeeds as a whole or changes nothing, and leaves no temporary folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shatter.models.saving import staged, write_json

WRITE = """
import os, signal, sys
from pathlib import Path
from shatter.models.saving import staged
with staged(sys.argv[1], config="config.json") as staging:
    (staging / "model.safetensors").write_text("half")
    print(flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(target: Path, what: str) -> subprocess.Popen:
    """Starts another process that is saving to the folder."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(target), what], stdin=pipe, stdout=pipe, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    return process


def save(target: Path, config: str = "config.json", **texts: str) -> None:
    with staged(target, config=config) as staging:
        for name, text in texts.items():
            (staging / name.replace("__", ".")).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.slow
def test_folders_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path: Path):
    """Only temporary folders of the same target go, even if its name is a pattern."""
    target = tmp_path / "m.d+l"
    for _ in range(2):
        killed = start(target, "die")
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir()]
    assert left == [f".m.d+l.saving-{killed.pid}"]  # the second one removed that of the first
    living = start(target, "wait")
    other = tmp_path / f".another.saving-{killed.pid}"
    own = tmp_path / f".m.d+l.saving-{os.getpid()}"  # left by a killed process with our number
    named_alike = tmp_path / f".mxd+l.saving-{killed.pid}"
    for folder in (other, own, named_alike):
        folder.mkdir()
    (tmp_path / ".m.d+l.saving-notes").write_text("the user's")
    save(target, config__json="{}")
    left = sorted(path.name for path in tmp_path.iterdir())
    staging = f".m.d+l.saving-{living.pid}"
    expected = [staging, other.name, named_alike.name, ".m.d+l.saving-notes", "m.d+l"]
    assert left == sorted(expected)
    assert read(tmp_path / staging) == {"model.safetensors": "half"}
    living.communicate("")
    save(target, config__json="{}")
    assert staging not in os.listdir(tmp_path)


def test_a_link_that_looks_like_a_temporary_folder_is_not_followed(tmp_path: Path):
    killed = start(tmp_path / "model", "die")
    killed.communicate()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("")
    os.rename(tmp_path / f".model.saving-{killed.pid}", tmp_path / "moved")
    (tmp_path / f".model.saving-{killed.pid}").symlink_to(tmp_path / "precious")
    save(tmp_path / "model", config__json="{}")
    assert (tmp_path / "precious" / "file").exists()


def test_files_that_the_new_ones_replace_go_and_others_stay(tmp_path: Path):
    save(
        tmp_path / "m",
        config__json="1",
        model__safetensors="1",
        tokenizer__json="1",
        chat_template__jinja="1",
        adapter_model__safetensors="1",
        adapter_config__json="1",
        notes__txt="1",
    )
    shard = "model-00001-of-00001.safetensors"
    with staged(tmp_path / "m", config="config.json") as staging:
        (staging / shard).write_text("2")
        (staging / "model.safetensors.index.json").write_text("2")
        (staging / "config.json").write_text("2")
    others = "tokenizer.json chat_template.jinja adapter_model.safetensors adapter_config.json"
    kept = dict.fromkeys([*others.split(), "notes.txt"], "1")
    new = {shard: "2", "model.safetensors.index.json": "2", "config.json": "2"}
    assert read(tmp_path / "m") == kept | new
    save(tmp_path / "m", "adapter_config.json", adapter_config__json="3", tokenizer__json="3")
    assert read(tmp_path / "m") == new | {
        "notes.txt": "1",
        "adapter_config.json": "3",
        "tokenizer.json": "3",
    }


@pytest.mark.parametrize("is_changed", [False, True])
def test_no_mixture_of_two_models(
    is_changed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """If the config changes, a save that ends between two files leaves no config."""
    save(tmp_path / "m", config__json="old", model__safetensors="old")
    replace = os.replace

    def once(source: Path, target: Path) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", once)
    text = "new" if is_changed else "old"
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "m", config__json=text, model__safetensors="new")
    expected = {"model.safetensors": "new"} | ({} if is_changed else {"config.json": "old"})
    assert read(tmp_path / "m") == expected
    assert os.listdir(tmp_path) == ["m"]


def test_a_failure_while_writing_leaves_everything_as_it_was(tmp_path: Path):
    save(tmp_path / "m", config__json="old")
    with (
        pytest.raises(OSError, match="no space"),
        staged(tmp_path / "m", config="config.json") as s,
    ):
        (s / "config.json").write_text("new")
        raise OSError("no space")
    assert read(tmp_path / "m") == {"config.json": "old"}
    assert os.listdir(tmp_path) == ["m"]


def test_no_file_of_settings_holds_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"temperature": float("nan")})
    assert not os.listdir(tmp_path)
