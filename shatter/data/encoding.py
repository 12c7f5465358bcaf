"""Rows of text to token arrays: the prompt's tokens once, every completion closed by one EOS."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from shatter.data.files import json_line
from shatter.data.layouts import Text, shown
from shatter.data.report import BadRow, DataError, OnBadRow, Problem, Report, settle
from shatter.data.rows import Row, record_of
from shatter.data.truncation import truncate_document


class TextTokenizer(Protocol):
    """What a tokenizer must offer; `shatter.models.Tokenizer` does.

    Attributes:
      bos: the id that begins a document; None = the model has none, EOS serves.
      eos: the id that ends it; rows cannot be encoded without.
      adds_bos: whether documents of this model begin with `bos`.
      chat_template: the template of conversations, if there is one.
    """

    @property
    def bos(self) -> int | None: ...  # noqa: D102
    @property
    def eos(self) -> int | None: ...  # noqa: D102
    @property
    def adds_bos(self) -> bool: ...  # noqa: D102
    @property
    def chat_template(self) -> str | None: ...  # noqa: D102

    def encode(self, text: str) -> Sequence[int]:
        """Text to ids, none added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text."""

    def render_chat(self, messages: Any, *, add_generation_prompt: bool = False) -> str:
        """A conversation as text, with the special tokens; ValueError if it cannot be."""


class Encoded(NamedTuple):
    """A row in tokens.

    Attributes:
      prompt: int32 `[P]`, at least one token.
      completions: K arrays, int32 `[C_k]`, the last token EOS.
      ranks: K ranks; smaller is better, equal = unresolved, < 0 = not shown.
      weight: how much the answer counts.
      votes: how many chose each, and maybe how many chose none.
      row: what was encoded.
    """

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    ranks: tuple[int, ...]
    weight: float
    votes: tuple[float, ...] | None
    row: Row

    @property
    def length(self) -> int:
        """Tokens of the longest document, prompt and completion."""
        return len(self.prompt) + max(map(len, self.completions))


def encode_rows(
    rows: Sequence[Row],
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    on_bad_row: OnBadRow = "fail",
    bad_rows_path: str | Path | None = None,
    report: Report | None = None,
) -> tuple[list[Encoded], Report]:
    """Encodes prompt and completion as one text and cuts it where the prompt's tokens end.

    A document begins with BOS if the tokenizer adds it or the prompt is empty (EOS where there is
    no BOS). Too long a document loses prompt tokens on the left, after BOS, by `truncate_prompt`:
    down to `max_prompt_length`, or as many as its longest completion needs, but no more than half
    of `max_length`; then completion tokens on the right, before EOS.

    Args:
      rows: the rows.
      tokenizer: of the model.
      max_length: largest number of tokens of a document, at least 3.
      max_prompt_length: largest number of prompt tokens.
      on_bad_row: "fail" = raise, naming the first bad row; "skip" = leave bad rows out.
      bad_rows_path: where "skip" writes the bad rows, those of `report` too, with their reasons.
      report: that of reading the rows; the returned one goes on from it.

    Returns:
      The encoded rows, in order, and the report.

    Raises:
      DataError: if a row is bad and `on_bad_row` is "fail", if no good row is left, or if the
        tokenizer has no EOS, or no chat template where a row is a conversation.
      ValueError: if a length is too small.
    """
    if max_length < 3 or (max_prompt_length is not None and max_prompt_length < 1):
        raise ValueError(
            "expected max_length >= 3 (BOS, a token, EOS) and max_prompt_length >= 1, found "
            f"{max_length} and {max_prompt_length}"
        )
    eos = tokenizer.eos
    if eos is None:
        raise DataError(
            "the tokenizer has no EOS, so no completion can end: expected eos_token in "
            "tokenizer_config.json or eos_token_id in config.json, found neither"
        )
    bos = eos if tokenizer.bos is None else tokenizer.bos
    encode = functools.lru_cache(4096)(lambda text: tuple(tokenizer.encode(text)))
    encoded: list[Encoded] = []
    problems: list[Problem] = []
    lost: list[tuple[int, ...]] = []
    for row in rows:
        try:
            documents = [_document(row.prompt, c, tokenizer, encode, eos) for c in row.completions]
            prompt, completions = documents[0][0], [completion for _, completion in documents]
            if not prompt or (tokenizer.adds_bos and prompt[0] != bos):
                prompt = [bos, *prompt]
            short, cut = truncate_document(
                prompt,
                completions,
                max_length=max_length,
                max_prompt_length=max_prompt_length,
                bos=bos,
                eos=eos,
            )
            _assert_distinct(cut)
        except BadRow as error:
            text = json_line(record_of(row)).decode().strip()
            problems.append(Problem(row.source, text, *error.args))
            continue
        before, after = (prompt, *completions), (short, *cut)
        lost.append(tuple(len(a) - len(b) for a, b in zip(before, after, strict=True)))
        arrays = [np.asarray(ids, np.int32) for ids in after]
        about = row.ranks, row.weight, row.votes, row
        encoded.append(Encoded(arrays[0], tuple(arrays[1:]), *about))
    report = report or Report(read=len(rows))
    report = report._replace(
        kept=len(encoded),
        skipped=report.skipped + len(problems),
        truncated_prompts=sum(counts[0] > 0 for counts in lost),
        truncated_completions=sum(count > 0 for counts in lost for count in counts[1:]),
        truncated_tokens=sum(map(sum, lost)),
        tokens=sum(len(row.prompt) + len(c) for row in encoded for c in row.completions),
        problems=report.problems + tuple(problems),
    )
    settle(report, len(problems), on_bad_row, bad_rows_path)
    return encoded, report


def _document(
    prompt: Text, completion: Text, tokenizer: TextTokenizer, encode: Any, eos: int
) -> tuple[list[int], list[int]]:
    """Ids of the prompt, without an added BOS, and of one completion, EOS included."""
    start, whole = _texts(prompt, completion, tokenizer)
    prompt_ids, ids = list(encode(start)) if start else [], list(encode(whole))
    num = len(prompt_ids)
    if ids[:num] != prompt_ids:
        first = next(n for n, a in enumerate(prompt_ids) if ids[n : n + 1] != [a])
        alone, merged = (tokenizer.decode(part[first : first + 1]) for part in (prompt_ids, ids))
        raise BadRow(
            "prompt",
            f"a prompt whose tokens the document begins with, token {first} being {alone!r}",
            f"{merged!r}, a token across the end of the prompt {start[-20:]!r}",
            "move the white space at the end of the prompt to the start of the completion"
            if start[-1:].isspace()
            else "let the prompt end where a word ends",
        )
    body = ids[num:]
    while eos in body:
        last = len(body) - 1 - body[::-1].index(eos)
        if tokenizer.decode(body[last + 1 :]).strip():
            break
        body = body[:last]
    if not body:
        raise BadRow("completion", "at least one token before EOS", shown(completion))
    if isinstance(completion, str) and eos in body:
        raise BadRow("completion", f"EOS, token {eos}, at the end only", shown(completion))
    return prompt_ids, [*body, eos]


def _texts(prompt: Text, completion: Text, tokenizer: TextTokenizer) -> tuple[str, str]:
    """The prompt and the whole document, conversations by the chat template."""
    if isinstance(prompt, str):
        return prompt, prompt + cast(str, completion)
    if tokenizer.chat_template is None:
        raise DataError(
            "the rows are conversations and the tokenizer has no chat template: expected a "
            "template, found none; pass one (--chat_template=FILE, a Jinja template such as the "
            "chat_template of a tokenizer_config.json), or write prompts and completions as text"
        )
    try:
        start = tokenizer.render_chat(list(prompt), add_generation_prompt=True)
        whole = tokenizer.render_chat([*prompt, *cast(tuple, completion)])
    except ValueError as error:
        raise BadRow("prompt", "a conversation for the chat template", str(error)) from error
    if not whole.startswith(start):
        raise BadRow(
            "prompt",
            f"a template that begins the whole conversation with its prompt, ...{start[-40:]!r}",
            f"...{whole[max(len(start) - 40, 0) : len(start)]!r}",
            "the template's generation prompt must be what it writes before an answer",
        )
    return start, whole


def _assert_distinct(completions: Sequence[list[int]]) -> None:
    """Refuses completions that are the same to the model."""
    for k, ids in enumerate(completions):
        if ids in completions[:k]:
            raise BadRow(
                f"completions[{k}]",
                "a completion of its own",
                f"the {len(ids)} tokens of completions[{completions.index(ids)}], after truncation",
                "raise max_length if they differ further on",
            )
