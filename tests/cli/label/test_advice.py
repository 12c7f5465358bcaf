"""Follows the advice of error messages; afterwards the work goes on."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from shatter.cli.common.binary import UsageError
from shatter.cli.label import run
from shatter.cli.label.answers import current_answers
from shatter.cli.label.checkpoints import EnsembleState, save
from shatter.cli.label.config import (
    AcceptConfig,
    AnswerConfig,
    ExportConfig,
    ImportConfig,
    LearnConfig,
)
from shatter.cli.label.folder import answer_file
from shatter.cli.label.learn import learn, standing_answers
from shatter.cli.label.project import open_project
from tests.cli.label.projects import POOL, answer_all, write


def follow(message, **names):
    """Runs the last command of a message, after replacing the names that the user chooses."""
    command = re.findall(r"shatter label (.*)", str(message))[-1]
    for name, value in names.items():
        command = command.replace(name, shlex.quote(value))
    run.experiment(tyro.cli(run.FLAGS, args=shlex.split(command), use_underscores=True))


def num_answers(config):
    return len(current_answers(answer_file(Path(config.project))))


def changed_pool(config):
    write(Path(config.pool), [*POOL, {"prompt": "h", "completions": ["a", "b"]}])


def pool_gone(config):
    Path(config.pool).unlink()


def other_template(config):
    file = Path(config.project) / "config.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"template_sha256": "0" * 64}))


def damaged_config(config):
    (Path(config.project) / "config.json").write_bytes(b"\0")


CHANGES = (changed_pool, pool_gone, other_template, damaged_config)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_answers_are_never_shut_in(answered, tmp_path, change):
    """They can be exported and imported even if the pool, the template or the config is damaged."""
    change(answered)
    with pytest.raises(UsageError) as error:
        run.experiment(LearnConfig(project=answered.project))
    export = tmp_path / "export.jsonl"
    run.experiment(ExportConfig(project=answered.project, answers=str(export)))
    assert len(export.read_text().splitlines()) == 4
    another = dataclasses.replace(
        answered,
        project=str(tmp_path / "an other"),
        pool=write(tmp_path / "new.jsonl", POOL[:4]),
    )
    run.experiment(another)
    if "import" in str(error.value):
        follow(error.value, ANOTHER=another.project)
    else:
        file = answer_file(Path(answered.project))
        follow(f"shatter label import --project=ANOTHER --file={file}",
               ANOTHER=another.project)  # fmt: skip
    assert num_answers(another) == 4
    run.experiment(LearnConfig(project=another.project))
    assert open_project(another).state.history[-1]["answers"] == 4


@pytest.mark.slow
def test_a_damaged_record_of_paths(answered):
    file = Path(answered.project) / "paths.json"
    file.write_text("[")
    with pytest.raises(UsageError, match=r"paths.json is damaged .*: delete it, and propose with"):
        run.experiment(LearnConfig(project=answered.project))
    file.unlink()
    run.experiment(answered)
    run.experiment(LearnConfig(project=answered.project))


@pytest.mark.slow
def test_members_that_are_not_finite(answered, tmp_path):
    run.experiment(LearnConfig(project=answered.project))
    project = open_project(answered)
    states = project.state.members.states
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, states.params)
    members = project.state.members._replace(states=states._replace(params=params))
    save(project.folder, EnsembleState(members, 2, project.state.history))
    with pytest.raises(UsageError, match="utilities are not finite") as error:
        run.experiment(answered)
    another = dataclasses.replace(answered, project=str(tmp_path / "another"), prior_scale=0.1)
    run.experiment(another)
    follow(error.value, ANOTHER=another.project)
    assert num_answers(another) == 4
    shutil.rmtree(re.search(r"delete (\S+) to go on", str(error.value))[1])
    run.experiment(answered)
    assert open_project(answered).state.num_updates == 1


@pytest.mark.slow
def test_members_that_went_astray(answered, tmp_path, monkeypatch):
    project = open_project(answered)
    with monkeypatch.context() as patch:
        patch.setattr("shatter.cli.label.learn.utilities", lambda *_: np.full(2, np.nan))
        patch.setattr(
            "shatter.cli.label.learn.measure", lambda *_: {"answers": 0, "answers_sha256": ""}
        )
        with pytest.raises(
            UsageError, match="lower --learning_rate, and: shatter label import"
        ) as error:
            learn(project)
    slower = dataclasses.replace(answered, project=str(tmp_path / "slow"), learning_rate=1e-3)
    run.experiment(slower)
    follow(error.value, ANOTHER=slower.project)
    run.experiment(LearnConfig(project=slower.project))


@pytest.mark.slow
def test_an_imported_text_that_cannot_be_encoded(answered, tmp_path):
    """An import needs no model, so `learn` is the first to notice; the answers can be saved."""
    say = lambda text: [{"role": "assistant", "content": text}]
    row = {"prompt": [{"role": "user", "content": "a"}], "chosen": say("b"), "rejected": say("c")}
    run.experiment(
        ImportConfig(project=answered.project, file=write(tmp_path / "rows.jsonl", [row]))
    )
    with pytest.raises(UsageError, match=r"no chat template: .*\nThis text was imported") as error:
        run.experiment(LearnConfig(project=answered.project))
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    another = dataclasses.replace(
        answered, project=str(tmp_path / "another"), chat_template=str(template)
    )
    run.experiment(another)
    follow(error.value, ANOTHER=another.project)
    run.experiment(LearnConfig(project=another.project))
    assert open_project(another).state.history[-1]["answers"] == 5
    # If the template refuses the text, its line is named.
    template.write_text("{{ raise_exception('no') }}")
    refusing = dataclasses.replace(another, project=str(tmp_path / "refusing"))
    run.experiment(refusing)
    follow(error.value, ANOTHER=refusing.project)
    with pytest.raises(UsageError, match=r"import_\w+.jsonl:1: prompt: .*refuses a conversation"):
        run.experiment(LearnConfig(project=refusing.project))


@pytest.mark.slow
def test_a_query_file_that_is_gone(answered, tmp_path, capsys):
    run.experiment(LearnConfig(project=answered.project))
    run.experiment(answered)
    answer_all(answered)
    file = Path(answered.project) / "queries" / "round_0000.jsonl"
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(UsageError, match=r"answers.jsonl:1: query_id: .* put the query file back"):
        run.experiment(LearnConfig(project=answered.project))
    export = str(tmp_path / "left.jsonl")
    run.experiment(ExportConfig(project=answered.project, answers=export))
    assert "4 answers" in (said := capsys.readouterr().out) and said.count("left out: ") == 4
    file.write_bytes(kept)
    run.experiment(LearnConfig(project=answered.project))
    assert len(standing_answers(Path(answered.project))[1]) == 8


@pytest.mark.slow
def test_an_empty_query_file_that_nobody_has_answered(config):
    run.experiment(config)
    file = Path(config.project) / "queries" / "round_0000.jsonl"
    before = file.read_bytes()
    file.write_bytes(b"")
    with pytest.raises(UsageError, match="or delete it if nobody has answered its queries"):
        run.experiment(config)
    file.unlink()
    run.experiment(config)
    assert file.read_bytes() == before


def test_a_query_file_that_was_changed_on_purpose(config):
    run.experiment(config)
    file = Path(config.project) / "queries" / "round_0000.jsonl"
    file.write_text(file.read_text().replace('"score"', '"score" '))
    with pytest.raises(UsageError, match="if you have changed it yourself, delete") as error:
        run.experiment(config)
    Path(str(error.value).rpartition("delete ")[2]).unlink()
    run.experiment(config)


def test_a_query_that_is_there_twice(config):
    run.experiment(config)
    file = Path(config.project) / "queries" / "round_0000.jsonl"
    twin = file.with_name("round_0001.jsonl")
    twin.write_bytes(file.read_bytes())  # without a checksum, like a file copied by hand
    with pytest.raises(UsageError, match="remove one of the two"):
        run.experiment(config)
    twin.unlink()
    run.experiment(config)


@pytest.mark.slow
def test_both_the_answers_and_their_note_are_gone(answered, tmp_path):
    """No command makes a new answer file then, because the ensemble would learn from it."""
    run.experiment(LearnConfig(project=answered.project))
    for file in Path(answered.project).glob("answers.jsonl*"):
        file.unlink()
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "a ", "chosen": "a", "rejected": "bb"}])
    commands = (
        LearnConfig(project=answered.project),
        AnswerConfig(project=answered.project),
        ImportConfig(project=answered.project, file=rows),
        ExportConfig(project=answered.project, answers=str(tmp_path / "export.jsonl")),
        answered,
    )
    for config in commands:
        with pytest.raises(UsageError, match=r"answers, and nothing says that they were") as error:
            run.experiment(config)
        assert not answer_file(Path(answered.project)).exists()
    follow(error.value)
    run.experiment(LearnConfig(project=answered.project))
    assert open_project(answered).state.history[-1]["answers"] == 0


def test_the_names_of_queries_that_are_gone_are_not_free(answered):
    """Otherwise a new query of the same name would have an answer already."""
    file = Path(answered.project) / "queries" / "round_0000.jsonl"
    kept = file.read_bytes()
    file.unlink()
    other = dataclasses.replace(answered, arm="random", num_queries=3)
    with pytest.raises(UsageError, match=r"answers.jsonl:1: query_id: .* put the query file back"):
        run.experiment(other)
    assert not file.exists()
    file.write_bytes(kept)
    run.experiment(other)
    assert file.read_bytes() == kept


def test_a_config_that_is_gone(answered, tmp_path):
    (Path(answered.project) / "config.json").unlink()
    another = dataclasses.replace(answered, project=str(tmp_path / "another"))
    run.experiment(another)
    for config in (LearnConfig(project=answered.project), answered):
        with pytest.raises(UsageError, match=r"config.json is missing: put it back .*, or") as e:
            run.experiment(config)
        follow(e.value, ANOTHER=another.project)
    assert num_answers(another) == 4


@pytest.mark.slow
def test_lines_that_are_gone_are_never_learned_from(answered):
    run.experiment(LearnConfig(project=answered.project))
    file = answer_file(Path(answered.project))
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    for config in (LearnConfig(project=answered.project), answered):
        with pytest.raises(UsageError, match=r"has .* of its .* confirmed bytes") as error:
            run.experiment(config)
    assert open_project(answered).state.history[-1]["answers"] == 4
    follow(error.value)
    run.experiment(LearnConfig(project=answered.project))
    assert open_project(answered).state.history[-1]["answers"] == 3


@pytest.mark.slow
def test_a_pool_that_has_too_few_or_none_left(config, tmp_path):
    pool = write(tmp_path / "small.jsonl", [{"prompt": "a", "completions": ["b", "c", "d"]}])
    config = dataclasses.replace(config, pool=pool)
    with pytest.raises(UsageError, match=r"has 3 comparisons .*: lower --num_queries, or begin an"):
        run.experiment(config)
    config = dataclasses.replace(config, num_queries=3)
    run.experiment(config)
    answer_all(config)
    with pytest.raises(UsageError, match=r"has 0 comparisons .* \(3 were\): begin another project"):
        run.experiment(dataclasses.replace(config, num_queries=1))
    four = dataclasses.replace(config, num_queries=1, num_responses=4)
    with pytest.raises(UsageError, match=r"has 0 comparisons of 4 .*: lower --num_responses, or"):
        run.experiment(four)
    run.experiment(dataclasses.replace(four, num_responses=3))


def test_what_a_missing_project_says(config, tmp_path):
    absent = str(tmp_path / "absent")
    with pytest.raises(UsageError, match="no labelling project"):  # a folder with other files
        run.experiment(ExportConfig(project=str(tmp_path), answers=str(tmp_path / "answers.jsonl")))
    for kind in (LearnConfig, ExportConfig, AcceptConfig):
        with pytest.raises(UsageError, match="no labelling project, or not yet: propose first"):
            run.experiment(kind(project=absent))
        assert not Path(absent).exists()
    run.experiment(dataclasses.replace(config, project=absent))  # propose


def test_the_next_command_is_one(config, capsys):
    config = dataclasses.replace(config, project=str(Path(config.project).with_name("a b's")))
    run.experiment(config)
    said = capsys.readouterr().out
    command = re.search(r"Next: shatter label (.*)", said)[1]
    found = tyro.cli(run.FLAGS, args=shlex.split(command), use_underscores=True)
    assert found.project == config.project


def test_a_member_that_is_no_language_model(answered, tmp_path):
    both = {"model": str(tmp_path / "model"), "answers": str(tmp_path / "both.jsonl")}
    with pytest.raises(UsageError, match="--ensemble=adapters; or use --answers"):
        run.experiment(ExportConfig(project=answered.project, **both))
    assert not Path(both["answers"]).exists()  # all or nothing
    with pytest.raises(UsageError, match="--member=1: expected --model=FOLDER beside it"):
        run.experiment(ExportConfig(project=answered.project, answers=both["answers"], member=1))
    run.experiment(ExportConfig(project=answered.project, answers=str(tmp_path / "answers.jsonl")))
