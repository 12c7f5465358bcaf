import dataclasses
import itertools
import json
import re
from typing import Any

import numpy as np
import pytest

from shatter.data import (
    Report,
    Row,
    RowsError,
    collate,
    encode_prompts,
    encode_rows,
    read_rows,
)
from shatter.models import load_tokenizer

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello you"}
OTHER = {"role": "assistant", "content": "hey"}
TALK = Row((USER,), ((ANSWER,), (OTHER,)), (1, 2), source="talk:1")


@dataclasses.dataclass
class Pieces:
    """Tokens are words with the space before them, newlines and single characters."""

    bos: int | None = 0
    eos: int | None = 1
    adds_bos: bool = False
    chat_template: str | None = None
    pieces: list[str] = dataclasses.field(default_factory=lambda: ["<s>", "</s>"])

    def encode(self, text):
        found = re.findall(r"</?s>| ?\w+|\n+|[^\w\n]", text)
        assert "".join(found) == text
        self.pieces += [piece for piece in dict.fromkeys(found) if piece not in self.pieces]
        return [self.pieces.index(piece) for piece in found]

    def decode(self, ids):
        return "".join(self.pieces[n] for n in ids if n > 1)

    def render_chat(self, messages, *, add_generation_prompt=False):
        if messages[0]["role"] == "system":
            raise ValueError("this template takes no system message")
        begin, middle, end, last = self.chat_template.split("|")
        text = begin + "".join(
            message["role"] + middle + message["content"] + end for message in messages
        )
        return text + (f"assistant{middle}" if add_generation_prompt else last)

    def spelt(self, ids):
        return "".join(self.pieces[n] for n in ids)


@dataclasses.dataclass
class Real(Pieces):
    """Returns the content of a tokenizer.json."""

    backend: Any = None

    def encode(self, text):
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.backend.decode(list(ids))

    @classmethod
    def load(cls, folder, **about):
        tokenizers = pytest.importorskip("tokenizers")
        return cls(backend=tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), **about)


def gpt2(data_dir):
    return Real.load(data_dir / "gpt2_tokenizer", bos=None, eos=50256)


def stories(data_dir):
    return Real.load(data_dir / "stories260k", bos=1, eos=2, adds_bos=True)


def encode_one(tokenizer, prompt, *completions, max_length=99, **arguments):
    """Returns prompt and completions, decoded."""
    row = Row(prompt, completions, tuple(range(1, 1 + len(completions))), source="f:1")
    (encoded,), report = encode_rows([row], tokenizer, max_length=max_length, **arguments)
    assert encoded.row is row and encoded.ranks == row.ranks
    assert all(ids.dtype == np.int32 for ids in (encoded.prompt, *encoded.completions))
    spelt = [tokenizer.spelt(ids) for ids in (encoded.prompt, *encoded.completions)]
    return *spelt, report


@pytest.mark.parametrize(
    ("about", "prompt", "expected"),
    [
        ({}, "a b", "a b"),
        ({}, "", "<s>"),
        ({"adds_bos": True}, "a b", "<s>a b"),
        ({"adds_bos": True}, "", "<s>"),
        ({"adds_bos": True}, "<s>a b", "<s>a b"),  # BOS is in the text already
        ({"bos": None}, "", "</s>"),
        ({"bos": None}, "a b", "a b"),
        ({"bos": 1, "adds_bos": True}, "a b", "</s>a b"),
    ],
)
def test_a_document_begins_with_one_bos_where_it_must(about, prompt, expected):
    assert encode_one(Pieces(**about), prompt, " c", " d")[0] == expected


@pytest.mark.parametrize("tail", ["", "</s>", "</s></s>", "</s>\n", "</s>\n</s> "])
def test_a_completion_ends_with_exactly_one_eos(tail):
    _, first, second, _ = encode_one(Pieces(), "a", f" b c{tail}", " d")
    assert (first, second) == (" b c</s>", " d</s>")


def test_eos_in_the_prompt_ends_nothing():
    assert encode_one(Pieces(), "a</s>b", " c")[:2] == ("a</s>b", " c</s>")


def problem_of(row, tokenizer, **arguments):
    """Returns the only problem of a row, which is encoded together with a good one."""
    good = Row("g", (" x", " y"), (1, 2), source="good:1")
    settings = {"max_length": 99, "on_bad_row": "skip"} | arguments
    encoded, report = encode_rows([good, row], tokenizer, **settings)
    assert [one.row for one in encoded] == [good]
    (problem,) = report.problems
    assert problem.source == row.source
    return str(problem)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("</s>", "completion: expected at least one token before EOS, found str '</s>'"),
        (" a</s>b", "completion: expected EOS, token 1, at the end only, found str ' a</s>b'"),
    ],
)
def test_eos_where_it_does_not_belong(completion, expected):
    assert expected in problem_of(Row("p", (completion, " x"), (1, 2), source="f:7"), Pieces())


def test_a_token_across_the_end_of_the_prompt_is_a_bad_row():
    message = problem_of(Row("Say: ", ("ok", "no"), (1, 2), source="f:3"), Pieces())
    assert message == (
        "f:3: prompt: expected a prompt whose tokens the document begins with, token 2 being ' ', "
        "found ' ok', a token across the end of the prompt 'Say: '; move the white space at the "
        "end of the prompt to the start of the completion"
    )
    message = problem_of(Row("Say: no", ("thing", " x"), (1, 2), source="f:3"), Pieces())
    assert "token 2 being ' no', found ' nothing'" in message and "where a word ends" in message
    assert encode_one(Pieces(), "Say:", " ok", " no")[:3] == ("Say:", " ok</s>", " no</s>")


def test_the_fields_of_a_row_are_kept():
    row = Row("p", (" a", " b"), (2, 1), weight=3.0, votes=(1.0, 3.0), source="f:1")
    (encoded,), report = encode_rows([row], Pieces(), max_length=9)
    assert (encoded.ranks, encoded.weight, encoded.votes) == ((2, 1), 3.0, (1.0, 3.0))
    assert encoded.length == 3  # p, a, EOS
    assert report == Report(read=1, kept=1, tokens=6)


# The prompt has ten tokens with BOS, the completions have 8 and 3 with EOS.
LONG = "a0" + "".join(f" a{n}" for n in range(1, 9)), "".join(f" b{n}" for n in range(7)), " c0 c1"


@pytest.mark.parametrize(
    ("max_length", "max_prompt_length", "prompt", "first", "lost"),
    [
        (18, None, 10, 8, 0),
        (17, None, 9, 8, 1),  # the prompt is cut
        (16, None, 8, 8, 2),
        (14, None, 7, 7, 4),  # but half of the document is left to it
        (18, 4, 4, 8, 6),
        (12, 6, 6, 6, 6),
        (12, 1, 1, 8, 9),
        (12, 9, 9, 3, 6),
    ],
)
def test_truncation_keeps_bos_and_eos(max_length, max_prompt_length, prompt, first, lost):
    tokenizer = Pieces(adds_bos=True)
    whole, *_ = encode_one(tokenizer, *LONG)
    limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    row = Row(LONG[0], LONG[1:], (1, 2))
    (encoded,), report = encode_rows([row], tokenizer, **limits)
    assert [len(encoded.prompt), len(encoded.completions[0])] == [prompt, first]
    assert encoded.length <= max_length
    # The prompt is cut on the left, after BOS.
    text = tokenizer.spelt(encoded.prompt)
    assert text.startswith("<s>") and whole.endswith(text.removeprefix("<s>"))
    # Completions are cut on the right, before EOS.
    spelt = [tokenizer.spelt(ids) for ids in encoded.completions]
    assert LONG[1].startswith(spelt[0].removesuffix("</s>")) and spelt[0].endswith("</s>")
    assert spelt[1] == " c0 c1</s>"
    assert report.truncated_prompts == (prompt < 10)
    assert report.truncated_completions == (first < 8)
    assert report.truncated_tokens == lost
    assert report.tokens == 2 * prompt + first + 3


def test_a_prompt_without_bos_is_cut_at_the_left_end():
    limits = {"max_length": 12, "max_prompt_length": 2}
    assert encode_one(Pieces(), *LONG, **limits)[0] == " a7 a8"


def test_a_completion_of_which_nothing_is_left_is_a_bad_row():
    row = Row(*LONG[:1], LONG[1:], (1, 2), source="f:9")
    message = problem_of(row, Pieces(), max_length=9, max_prompt_length=8)
    assert (
        "f:9: completion: expected room for a token and EOS in max_length = 9, found 8 prompt "
        "tokens and a completion of 8; raise max_length or lower max_prompt_length"
    ) in message
    with pytest.raises(ValueError, match=r"max_length >= 3 .* found 2 and None"):
        encode_rows([row], Pieces(), max_length=2)
    with pytest.raises(ValueError, match="max_prompt_length >= 1, found 9 and 0"):
        encode_rows([row], Pieces(), max_length=9, max_prompt_length=0)


def test_completions_that_differ_beyond_the_cut_only_are_a_bad_row():
    row = Row("p", (" a b c", " a b d"), (1, 2), source="f:2")
    message = problem_of(row, Pieces(), max_length=4)
    assert "completions[1]: expected a completion of its own, found the 3 tokens of" in message
    message = problem_of(Row("p", (" a", " a</s>"), (1, 2), source="f:2"), Pieces())
    assert "the 2 tokens of completions[0], after truncation" in message


@pytest.mark.parametrize(
    ("template", "prompt", "first"),
    [
        ("|: |\n|", "user: hi\nassistant:", " hello you\n</s>"),
        ("|:\n|</s>\n|", "user:\nhi</s>\nassistant:\n", "hello you</s>"),
        ("<s>|: |</s>|", "<s>user: hi</s>assistant:", " hello you</s>"),
    ],
)
def test_conversations_follow_the_template_once(template, prompt, first):
    tokenizer = Pieces(adds_bos=True, chat_template=template)
    if template.startswith(("|: ", "<s>|: ")):  # the space belongs to the answer's first word
        tokenizer.render_chat = lambda messages, *, add_generation_prompt=False: Pieces.render_chat(
            tokenizer, messages, add_generation_prompt=add_generation_prompt
        ).removesuffix(" ")
    (encoded,), _ = encode_rows([TALK], tokenizer, max_length=99)
    assert tokenizer.spelt(encoded.prompt) == "<s>" + prompt.removeprefix("<s>")
    assert tokenizer.spelt(encoded.completions[0]) == first
    assert tokenizer.spelt(encoded.completions[1]) == first.replace("hello you", "hey")


def test_an_answer_of_several_turns_keeps_the_eos_between_them():
    row = Row((USER,), ((ANSWER, USER, OTHER),), (0,))
    tokenizer = Pieces(chat_template="|:\n|</s>\n|")
    (encoded,), _ = encode_rows([row], tokenizer, max_length=99)
    expected = "hello you</s>\nuser:\nhi</s>\nassistant:\nhey</s>"
    assert tokenizer.spelt(encoded.completions[0]) == expected


def turn(role, content):
    return {"role": role, "content": content}


# Chosen and rejected differ from their first answer on.
PARTED = Row(
    (USER,),
    ((ANSWER, turn("user", "more"), OTHER), (OTHER, turn("tool", "x y"), ANSWER)),
    (1, 2),
    source="parted:1",
)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("last_turn", [False, True])
def test_the_mask_of_a_batch_shows_the_turns_that_count(adds_bos, last_turn):
    tokenizer = Pieces(adds_bos=adds_bos, chat_template="|:\n|</s>\n|")
    rows = [PARTED._replace(last_turn=last_turn), TALK]
    encoded, _ = encode_rows(rows, tokenizer, max_length=99)
    batch = collate(encoded, [0, 1], length=40, num_slots=3)
    spelt = [
        [tokenizer.spelt(ids[mask]) for ids, mask in zip(*pair, strict=True)]
        for pair in zip(batch.tokens, batch.mask, strict=True)
    ]
    last = ["hey</s>", "hello you</s>"]
    whole = [
        "hello you</s>\nuser:\nmore</s>\nassistant:\nhey</s>",
        "hey</s>\ntool:\nx y</s>\nassistant:\nhello you</s>",
    ]
    expected = last if last_turn else whole
    assert spelt[0] == [*expected, expected[0]]  # an empty slot repeats the first document
    assert spelt[1] == ["hello you</s>", "hey</s>", "hello you</s>"]
    # Which tokens count does not change the document, and every token counts once.
    pairs = zip(batch.tokens[0], batch.valid[0], strict=True)
    documents = [tokenizer.spelt(ids[valid]) for ids, valid in pairs]
    begin = "<s>" * adds_bos + "user:\nhi</s>\nassistant:\n"
    assert documents == [begin + text for text in (*whole, whole[0])]
    assert encoded[1].skipped == ()


def test_a_last_turn_that_is_cut_away_is_a_bad_row():
    row = PARTED._replace(last_turn=True)
    tokenizer = Pieces(chat_template="|:\n|</s>\n|")
    (whole,), _ = encode_rows([row], tokenizer, max_length=99)
    for max_length in range(6, whole.length):
        encoded = []
        try:
            encoded = encode_rows([row], tokenizer, max_length=max_length)[0]
        except RowsError as error:
            assert re.search(r"parted:1: completions?.*: expected", str(error))
        for one in encoded:
            for ids, skipped in zip(one.completions, one.skipped, strict=True):
                assert len(ids) - skipped >= 2 and ids[-1] == tokenizer.eos
                assert len(one.prompt) + len(ids) <= max_length
    message = problem_of(row, tokenizer, max_length=10)
    assert "expected room for its last turn in max_length = 10" in message


def test_a_call_of_a_tool_is_a_completion(data_dir):
    pytest.importorskip("jinja2")
    tokenizer = load_tokenizer(data_dir / "stories260k").with_chat_template("plain")
    calls = [{"name": "find", "arguments": {"what": what}} for what in ("ball", "hat")]
    chosen, rejected = (
        ({"role": "assistant", "content": None, "tool_calls": [call]},) for call in calls
    )
    row = Row((USER,), (chosen, rejected), (1, 2), source="f:1")
    (encoded,), _ = encode_rows([row], tokenizer, max_length=200)
    said = [tokenizer.decode(ids[:-1]) for ids in encoded.completions]
    assert [json.loads(text) for text in said] == calls
    silent = tokenizer.with_chat_template("{{ messages[0].content }}")  # shows no calls
    with pytest.raises(RowsError, match="f:1: completion: expected at least one token before EOS"):
        encode_rows([row], silent, max_length=200)


def test_what_a_tokenizer_or_template_raises_names_the_row():
    def refuse(*_, **__):
        raise ValueError("no token for 'x'")

    tokenizer = Pieces()
    tokenizer.encode = refuse
    with pytest.raises(RowsError, match=r"f:7: row: expected texts that .* no token for 'x'"):
        encode_rows([Row("p", ("x",), (0,), source="f:7")], tokenizer, max_length=9)


def test_conversations_that_the_template_does_not_fit():
    refused = TALK._replace(prompt=({"role": "system", "content": "x"},))
    tokenizer = Pieces(chat_template="|: |\n|")
    message = problem_of(refused, tokenizer)
    assert "a conversation for the chat template, found this template takes no system" in message
    merging = problem_of(TALK, tokenizer)
    assert "prompt whose tokens the document begins with, token 6 being ' '" in merging
    tokenizer.render_chat = lambda messages, *, add_generation_prompt=False: (
        "user: hi [answer]" if add_generation_prompt else "user: hi answer"
    )
    message = problem_of(TALK, tokenizer)
    assert "expected a template that begins the whole conversation with its prompt" in message


def test_without_template_or_eos_the_error_says_what_to_do():
    for on_bad_row in ("fail", "skip"):
        with pytest.raises(RowsError, match=r"no chat template.*--chat_template=FILE"):
            encode_rows([TALK], Pieces(), max_length=9, on_bad_row=on_bad_row)
    with pytest.raises(RowsError, match=r"the tokenizer has no EOS.*tokenizer_config\.json"):
        encode_rows([TALK], Pieces(eos=None), max_length=9)


def test_bad_rows_of_reading_and_encoding_come_together(tmp_path):
    good = {"prompt": "p", "chosen": " a", "rejected": " b"}
    lines = [good, {"prompt": "p"}, good | {"prompt": "p "}, good | {"chosen": "</s>"}]
    path, bad = tmp_path / "a.jsonl", tmp_path / "bad.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    rows, report = read_rows(path, on_bad_row="skip", bad_rows_path=bad)
    arguments = {"max_length": 9, "report": report}
    encoded, report = encode_rows(rows, Pieces(), on_bad_row="skip", bad_rows_path=bad, **arguments)
    assert len(encoded) == report.kept == 2 and (report.read, report.skipped) == (4, 2)
    written = [json.loads(line) for line in bad.read_text().splitlines()]
    assert [entry["source"] for entry in written] == [f"{path}:2", f"{path}:4"]
    assert written == [problem._asdict() for problem in report.problems]
    with pytest.raises(RowsError, match=r"a\.jsonl:4: completion: expected at least one token"):
        encode_rows(rows, Pieces(), **arguments)
    # Rows that were skipped when the file was read do not make encoding fail.
    assert len(encode_rows(rows[:-1], Pieces(), **arguments)[0]) == 2
    with pytest.raises(RowsError, match="of 1 rows no good one is left"):
        encode_rows(rows[-1:], Pieces(), max_length=9, on_bad_row="skip")


UNICODE = [
    "naïve 🦊\u200d🚀",
    "a\r\nb",
    "\n\n여우",
    "x\u2028y",
    "\ufeffbom",
    " e\u0301",
    "日本語。",
]


@pytest.mark.parametrize("load", [gpt2, stories])
def test_real_tokenizers_give_the_text_back(data_dir, load):
    tokenizer = load(data_dir)
    first = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    for prompt, text in itertools.product(["", "Hello there.", "Q: why?\n\nA:"], UNICODE):
        row = Row(prompt, (f" {text}", " no"), (1, 2))
        (encoded,), _ = encode_rows([row], tokenizer, max_length=99)
        ids = [*encoded.prompt, *encoded.completions[0]]
        assert (ids[0] == first) == (tokenizer.adds_bos or not prompt)
        assert ids.count(tokenizer.eos) == 1 + (ids[0] == tokenizer.eos)
        assert tokenizer.decode(ids).strip() == f"{prompt} {text}".strip()
        whole = tokenizer.encode(f"{prompt} {text}")
        assert ids == [first] * (tokenizer.adds_bos or not prompt) + whole + [tokenizer.eos]


@pytest.mark.parametrize("load", [gpt2, stories])
def test_prompts_alone_may_end_in_what_a_completion_would_change(data_dir, load):
    """Their tokens are those of the prompt, whatever would merge with what comes after it."""
    tokenizer = load(data_dir)
    prompts = ["Lily had a dog.", "What is 2+2?", "Q: why?\n\nA:", "(a)", "", "a "]
    rows = [Row(prompt, (".",), (0,)) for prompt in prompts]
    encoded, report = encode_prompts(rows, tokenizer)
    assert report.kept == len(prompts)
    first = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    for prompt, row in zip(prompts, encoded, strict=True):
        whole = [*([first] if tokenizer.adds_bos or not prompt else []), *tokenizer.encode(prompt)]
        assert row.prompt.tolist() == whole
        assert [ids.tolist() for ids in row.completions] == [[tokenizer.eos]]
    cut, report = encode_prompts(rows, tokenizer, max_prompt_length=3)
    assert max(len(row.prompt) for row in cut) == 3 and report.truncated_prompts > 0
    if load is gpt2:
        with pytest.raises(RowsError, match="a token across the end of the prompt"):
            encode_rows(rows[:1], tokenizer, max_length=99)


def test_real_preferences_in_real_tokens(data_dir):
    rows, report = read_rows(data_dir / "hh_harmless" / "pairs.jsonl", on_bad_row="skip")
    tokenizer = gpt2(data_dir)
    encoded, report = encode_rows(rows[:100], tokenizer, max_length=128)
    assert report.kept == 100 and 0 < report.truncated_prompts < 100
    assert max(row.length for row in encoded) == 128
    cut = [row for row in encoded if len(row.prompt) < len(tokenizer.encode(row.row.prompt))]
    assert len(cut) == report.truncated_prompts
    for row in encoded:
        assert row.row.prompt.endswith(tokenizer.decode(row.prompt[1:]).lstrip("\ufffd"))
        assert all(ids[-1] == tokenizer.eos for ids in row.completions)
    answers = [tuple(answer.lstrip() for answer in row.completions) for row in rows]
    merged = [Row(rows[n].prompt + " ", answers[n], (1, 2)) for n in range(9)]
    with pytest.raises(RowsError, match="expected a prompt whose tokens the document begins with"):
        encode_rows(merged, tokenizer, max_length=128)
