"""`shatter generate`: responses with their log-probs, resumption to the bit, bad input."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import documents, models
from shatter.cli import generate
from shatter.cli.common.binary import UsageError
from shatter.cli.common.sampling import response_text
from shatter.cli.generate import Config

PROMPTS = ["ab ", "c", "abcabc d", "", "h g f"]


@pytest.fixture(scope="module")
def model_folder(make_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, 1)
    return folder


@pytest.fixture
def config(model_folder: Path, tmp_path: Path) -> Config:
    return Config(
        model_name_or_path=str(model_folder),
        prompts=write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS]),
        output_dir=str(tmp_path / "run"),
        num_generations=3,
        max_completion_length=6,
        batch_size=2,
    )


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(config: Config) -> list[dict]:
    lines = (Path(config.output_dir) / generate.RESPONSES).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_log_probs_are_those_of_the_model(config: Config):
    generate.experiment(config)
    rows = rows_of(config)
    assert [row["prompt"] for row in rows] == PROMPTS
    transformer, params, tokenizer = models.load_pretrained(config.model_name_or_path)
    assert tokenizer is not None
    documents_read, found = [], []
    for row in rows:
        start = [1, *tokenizer.encode(row["prompt"])]  # the tokenizer's BOS
        for text, number, log_prob, finished in zip(
            row["completions"], row["num_tokens"], row["log_probs"], row["finished"], strict=True
        ):
            ids = tokenizer.encode(text) + [2] * finished
            if len(ids) == number and "<" not in text:  # a special token is no text
                documents_read.append((start, ids))
                found.append(log_prob)
    assert len(found) >= 5
    tokens = np.zeros((len(found), 20), int)
    mask = np.zeros(tokens.shape, bool)
    for n, (start, ids) in enumerate(documents_read):
        tokens[n, : len(start) + len(ids)] = start + ids
        mask[n, len(start) : len(start) + len(ids)] = True
    logits = jax.jit(models.transformer(transformer).apply)(params, jnp.asarray(tokens))
    expected = documents.log_prob(logits, jnp.asarray(tokens), jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert [row["drawn_log_probs"] for row in rows] == [row["log_probs"] for row in rows]


@pytest.mark.slow
def test_a_prompts_responses_do_not_depend_on_its_batch(config: Config):
    generate.experiment(config)
    alone = dataclasses.replace(config, batch_size=5, output_dir=f"{config.output_dir}2")
    generate.experiment(alone)
    for row, other in zip(rows_of(config), rows_of(alone), strict=True):
        assert row["completions"] == other["completions"]
        np.testing.assert_allclose(row["log_probs"], other["log_probs"], rtol=1e-5)


@pytest.mark.slow
def test_greedy_decoding_draws_without_chance(config: Config):
    generate.experiment(dataclasses.replace(config, top_k=1))
    for row in rows_of(config):
        assert len(set(row["completions"])) == 1
        np.testing.assert_allclose(row["drawn_log_probs"], 0.0, atol=1e-6)
        assert max(row["log_probs"]) < 0


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(config: Config):
    generate.experiment(config)
    file = Path(config.output_dir) / generate.RESPONSES
    whole = file.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1, len(whole)):
        file.write_bytes(whole[:size])
        generate.experiment(config)
        assert rows_of(config) == [json.loads(line) for line in whole.splitlines()]


@pytest.mark.slow
def test_a_run_of_other_prompts_or_flags_is_not_gone_on_with(config: Config, tmp_path: Path):
    generate.experiment(config)
    other = write(tmp_path / "other.jsonl", [{"prompt": "g"}])
    for change in ({"prompts": other}, {"temperature": 0.5}, {"seed": 1}):
        with pytest.raises(UsageError, match="another config"):
            generate.experiment(dataclasses.replace(config, **change))


def test_a_damaged_line_is_named(config: Config):
    generate.experiment(config)
    file = Path(config.output_dir) / generate.RESPONSES
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b'{"prompt": "zz"}\n', *lines[2:]]))
    with pytest.raises(UsageError, match=r"generations\.jsonl:2 is damaged"):
        generate.experiment(config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"completion": "a"}', r"prompts\.jsonl:1: prompt: expected a text or a conversation"),
        ("{", r"prompts\.jsonl:1"),
        ('{"prompt": 3}', r"prompts\.jsonl:1: prompt: expected .*, found int 3"),
        ("", "expected prompts, found no line"),
    ],
)
def test_bad_prompts_are_named(config: Config, line: str, message: str):
    Path(config.prompts).write_text(line + "\n" if line else "")
    with pytest.raises(UsageError, match=message):
        generate.experiment(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "nowhere.jsonl"}, "--prompts: no file nowhere.jsonl"),
        ({"max_completion_length": 32}, "--max_completion_length must be at most 31"),
        ({"top_p": 0.0}, "--top_p must be in"),
        ({"temperature": 0.0}, "--temperature must be positive"),
        ({"base_model": "x"}, "--base_model belongs to a folder of adapters"),
        ({"model_name_or_path": "nowhere"}, "--model_name_or_path=nowhere"),
    ],
)
def test_bad_flags_are_named(config: Config, change: dict, message: str):
    with pytest.raises(UsageError, match=message):
        generate.experiment(dataclasses.replace(config, **change))
    assert not Path(config.output_dir).exists()


def test_a_conversation_is_answered_by_a_message(config: Config, tmp_path: Path):
    prompt = [{"role": "user", "content": "ab"}]
    conversations = write(tmp_path / "chat.jsonl", [{"prompt": prompt, "chosen": "is ignored"}])
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    (tmp_path / "template.jinja").write_text(template)
    chat = str(tmp_path / "template.jinja")
    generate.experiment(dataclasses.replace(config, prompts=conversations, chat_template=chat))
    (row,) = rows_of(config)
    assert row["prompt"] == prompt
    assert all(message["role"] == "assistant" for (message,) in row["completions"])


def test_adapters_answer_as_their_merged_model(config: Config, tmp_path: Path):
    transformer, params, tokenizer = models.load_pretrained(config.model_name_or_path)
    lora = models.LoraConfig(2, 4.0, ("query", "mlp_out"))
    adapters = models.init_lora(jax.random.key(3), params, lora)
    adapters = jax.tree.map(lambda leaf: leaf + 0.3, adapters)
    folder, merged = tmp_path / "adapters", tmp_path / "merged"
    models.save_lora(folder, transformer, adapters, lora, base=config.model_name_or_path)
    models.save_pretrained(
        merged, transformer, models.merge_lora(params, adapters, lora), tokenizer
    )
    found = []
    for name, output in ((folder, "a"), (merged, "b")):
        one = dataclasses.replace(
            config, model_name_or_path=str(name), output_dir=str(tmp_path / output)
        )
        generate.experiment(one)
        found.append(rows_of(one))
    assert found[0] == found[1]
    generate.experiment(config)
    assert found[0] != rows_of(config)


def test_text_of_a_response_keeps_its_space(model_folder: Path):
    _, _, tokenizer = models.load_pretrained(model_folder)
    assert tokenizer is not None
    prompt, response = tokenizer.encode("ab"), tokenizer.encode(" c")
    assert response_text(tokenizer.decode, prompt, response) == " c"
