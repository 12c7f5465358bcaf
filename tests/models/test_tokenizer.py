import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shatter.models.tokenizer import CHAT_TEMPLATES, load_tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="it is an extra")
pytest.importorskip("jinja2", reason="it is an extra")

PIECES = ["<s>", "</s>", "<pad>", "a", "b", " "]
MESSAGES = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "b"}]


def write(
    folder: Path, *, begins: bool = False, backend: dict[str, Any] | None = None, **files: Any
) -> Path:
    """A folder with the tokenizer of `PIECES`; `begins`: its post-processor puts <s> first."""
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: i for i, piece in enumerate(PIECES)}, [])
    )
    model.add_special_tokens(PIECES[:3])
    model.decoder = tokenizers.decoders.Fuse()
    if begins:
        model.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    text = json.dumps(json.loads(model.to_str()) | (backend or {}))
    (folder / "tokenizer.json").write_text(text)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_no_tokenizer(tmp_path: Path):
    assert load_tokenizer(tmp_path) is None


def test_encode_adds_nothing_and_reads_special_tokens(tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path, begins=True))
    assert tokenizer.encode("ab a") == [3, 4, 5, 3]
    assert tokenizer.encode("<s>ab</s>") == [0, 3, 4, 1]
    assert tokenizer.encode("") == []


def test_decode(tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path))
    ids = np.array([0, 3, 5, 4, 1])
    assert tokenizer.decode(ids) == "a b"
    assert tokenizer.decode(ids, skip_special=False) == "<s>a b</s>"


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path):
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    filled = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 2,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    folder = write(tmp_path, backend={"truncation": cut, "padding": filled})
    assert tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("aba").ids == [
        *(3, 4),
        *[2] * 6,
    ]
    assert load_tokenizer(folder).encode("aba") == [3, 4, 3]


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"}}, (0, 1, None)),
        (
            {"tokenizer_config": {"eos_token": {"content": "</s>", "special": True}}},
            (None, 1, None),
        ),
        (
            {"special_tokens_map": {"eos_token": {"content": "</s>"}, "pad_token": "<pad>"}},
            (None, 1, 2),
        ),
        (
            {"special_tokens_map": {"eos_token": "<s>"}, "tokenizer_config": {"eos_token": "</s>"}},
            (None, 1, None),
        ),
        # What the tokenizer does not mention is the model's; null is a mention.
        ({"config": {"bos_token_id": 0, "eos_token_id": [1, 0]}}, (0, 1, None)),
        (
            {"config": {"bos_token_id": 0}, "tokenizer_config": {"bos_token": None}},
            (None, None, None),
        ),
        ({"config": {"bos_token_id": 99, "eos_token_id": None}}, (None, None, None)),
        ({"tokenizer_config": {"pad_token": "[PAD]"}}, (None, None, None)),
    ],
)
def test_special_tokens(files: dict[str, Any], expected: tuple[int | None, ...], tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path, **files))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == expected


def test_special_token_outside_the_vocabulary(tmp_path: Path):
    write(tmp_path, tokenizer_config={"eos_token": "<end>"})
    with pytest.raises(ValueError, match="eos_token is '<end>', which tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "begins, config, expected",
    [
        (True, {"bos_token": "<s>"}, True),
        (False, {"bos_token": "<s>"}, False),
        (False, {"bos_token": "<s>", "add_bos_token": True}, True),
        (True, {"bos_token": "<s>", "add_bos_token": False}, False),
        (True, {"bos_token": None, "add_bos_token": True}, False),
        (True, {}, False),
    ],
)
def test_adds_bos(begins: bool, config: dict[str, Any], expected: bool, tmp_path: Path):
    assert load_tokenizer(write(tmp_path, begins=begins, tokenizer_config=config)).adds_bos is (
        expected
    )


def test_vocab_size(tmp_path: Path):
    assert load_tokenizer(write(tmp_path)).vocab_size == len(PIECES)


def test_vocab_size_is_one_over_the_largest_id(tmp_path: Path):
    extra = {"id": 17, "content": "<x>", "special": True}
    extra |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    folder = write(tmp_path, backend={})
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["vocab"]["<x>"] = 17
    whole["added_tokens"].append(extra)
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    assert load_tokenizer(folder).vocab_size == 18


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "expected one JSON object, found list"),
    ],
)
def test_damaged_file(name: str, content: str, message: str, tmp_path: Path):
    (write(tmp_path) / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
NAMED = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]


@pytest.mark.parametrize("template", [TEMPLATE, NAMED])
def test_chat_template_of_the_config(template: Any, tmp_path: Path):
    config = {"bos_token": "<s>", "chat_template": template}
    tokenizer = load_tokenizer(write(tmp_path, tokenizer_config=config))
    assert tokenizer.render_chat(MESSAGES) == "<s>[a b][b]"
    assert tokenizer.encode(tokenizer.render_chat(MESSAGES[1:]))[0] == tokenizer.bos


def test_chat_template_file_comes_first(tmp_path: Path):
    write(tmp_path, tokenizer_config={"chat_template": "no"})
    (tmp_path / "chat_template.jinja").write_text("{{ messages | length }}")
    assert load_tokenizer(tmp_path).render_chat(MESSAGES) == "2"


def test_no_chat_template(tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path))
    assert tokenizer.chat_template is None
    with pytest.raises(
        ValueError, match=r"--chat_template=FILE \(jinja\) or --chat_template=plain"
    ):
        tokenizer.render_chat(MESSAGES)


def test_plain_template(tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path)).with_chat_template("plain")
    assert tokenizer.chat_template == CHAT_TEMPLATES["plain"]
    assert tokenizer.render_chat(MESSAGES) == "User: a b\nAssistant: b"
    prompt = tokenizer.render_chat(MESSAGES[:1], add_generation_prompt=True)
    assert prompt == "User: a b\nAssistant:"
    assert tokenizer.render_chat(MESSAGES).startswith(prompt)


def test_template_refuses(tmp_path: Path):
    template = "{{ raise_exception('turns must alternate') }}"
    tokenizer = load_tokenizer(write(tmp_path)).with_chat_template(template)
    with pytest.raises(ValueError, match=r"\['user', 'assistant'\]: turns must alternate"):
        tokenizer.render_chat(MESSAGES)


def test_template_runs_in_a_sandbox(tmp_path: Path):
    template = "{{ messages.append(1) }}"
    tokenizer = load_tokenizer(write(tmp_path)).with_chat_template(template)
    with pytest.raises(ValueError, match="is unsafe"):
        tokenizer.render_chat(MESSAGES)


def test_template_is_no_jinja(tmp_path: Path):
    with pytest.raises(ValueError, match="the chat template is no jinja: line 2"):
        load_tokenizer(write(tmp_path)).with_chat_template("\n{% for %}")


def test_template_reads_the_date(tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path)).with_chat_template("{{ strftime_now('%Y') }}")
    assert 2025 < int(tokenizer.render_chat([])) < 2200


DATED = [
    "{{ strftime_now('%d %b') }}",
    "{% if not date is defined %}{% set date = strftime_now('%d %b') %}{% endif %}{{ date }}",
    "{% macro head(form) %}{{ strftime_now(form) }}{% endmacro %}{{ head('%d %b') }}",
]


@pytest.mark.parametrize("template", DATED)
def test_a_date_of_its_own_takes_the_clock_away(template: str, tmp_path: Path):
    tokenizer = load_tokenizer(write(tmp_path)).with_chat_template(template)
    assert tokenizer.asks_for_date
    winter = tokenizer.with_date(datetime.datetime(2019, 1, 31, 23, 59))
    assert winter.render_chat(MESSAGES) == "31 Jan"
    assert winter.with_date(datetime.datetime(2020, 2, 1)).render_chat(MESSAGES) == "01 Feb"
    dates = [datetime.datetime(2019, 1, 31, 23, 59), datetime.datetime(2020, 2, 1)]
    hashes = {tokenizer.with_date(date).fingerprint() for date in dates}
    assert len(hashes | {tokenizer.fingerprint()}) == 3
    assert winter.fingerprint() == tokenizer.with_date(dates[0]).fingerprint()


@pytest.mark.parametrize("template", ["plain", "strftime_now", "{{ 'strftime_now' }}", None])
def test_a_template_that_asks_for_no_date_has_none_in_its_fingerprint(
    template: str | None, tmp_path: Path
):
    tokenizer = load_tokenizer(write(tmp_path))
    tokenizer = tokenizer if template is None else tokenizer.with_chat_template(template)
    assert not tokenizer.asks_for_date
    dated = tokenizer.with_date(datetime.datetime(2019, 1, 31))
    assert dated.fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "added_tokens"])
def test_save_keeps_every_byte(name: str, tmp_path: Path):
    (tmp_path / "new").mkdir()
    write(tmp_path, begins=True, **{name: {"x": "\u00e9", "chat_template": TEMPLATE}})
    (tmp_path / "chat_template.jinja").write_bytes(b"a\r\nb\n")
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.save(tmp_path / "new")
    for file in (f"{name}.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / file).read_bytes()
    assert load_tokenizer(tmp_path / "new") == tokenizer


@pytest.mark.parametrize("before", [None, "old", NAMED])
def test_save_with_another_template(before: Any, tmp_path: Path):
    (tmp_path / "new").mkdir()
    config = {"eos_token": "</s>", "chat_template": before}
    (write(tmp_path, tokenizer_config=config) / "chat_template.jinja").write_text("oldest")
    old = load_tokenizer(tmp_path)
    new = old.with_chat_template("{{ 'new' }}")
    new.save(tmp_path / "new")
    loaded = load_tokenizer(tmp_path / "new")
    assert loaded == new
    assert loaded.render_chat(MESSAGES) == "new"
    assert old.render_chat(MESSAGES) == "oldest"
    if before is NAMED:  # the others stay
        saved = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
        assert NAMED[0] in saved["chat_template"]


def test_fingerprint(tmp_path: Path):
    """It changes with what changes tokens, and with nothing else."""
    for name in "abc":
        (tmp_path / name).mkdir()
    first = load_tokenizer(write(tmp_path / "a"))
    same = load_tokenizer(write(tmp_path / "b", tokenizer_config={"model_max_length": 8}))
    other = load_tokenizer(write(tmp_path / "c", begins=True))
    template = first.with_chat_template("plain")
    hashes = [tokenizer.fingerprint() for tokenizer in (first, same, other, template)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert all(len(digest) == 64 for digest in hashes)


def test_real_tokenizer(data_dir: Path):
    """Its normalizer puts a space before a text: the pieces are not the whole."""
    tokenizer = load_tokenizer(data_dir / "stories260k")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.adds_bos) == (1, 2, True)
    assert tokenizer.vocab_size == 512
    text = "Once upon a time, there was a café."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("Once") + tokenizer.encode("upon") != tokenizer.encode("Onceupon")
