"""Rows of text to token arrays: the prompt's tokens once, every completion closed by one EOS."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from shatter.data.report import (
    BadRow,
    DataError,
    OnBadRow,
    Problem,
    Report,
    raw_text,
    settle,
)
from shatter.data.rows import Row, record_of
from shatter.data.texts import Text, shown
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
      skipped: K counts: the first tokens of each completion that the loss leaves out, turns before
        the last one; empty = none of any.
    """

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    ranks: tuple[int, ...]
    weight: float
    votes: tuple[float, ...] | None
    row: Row
    skipped: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the longest document, prompt and completion."""
        return len(self.prompt) + max(map(len, self.completions))


class _Limits(NamedTuple):
    """What encoding needs of a tokenizer and of lengths."""

    tokenizer: TextTokenizer
    encode: Callable[[str], tuple[int, ...]]
    bos: int
    eos: int
    max_length: int
    max_prompt_length: int | None


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

    The loss counts the whole completion and its EOS, messages of tools and users in it too; of a
    row with `last_turn` only the completion's last message.

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
    encode = functools.lru_cache(4096)(lambda text: tuple(tokenizer.encode(text)))
    bos = eos if tokenizer.bos is None else tokenizer.bos
    limits = _Limits(tokenizer, encode, bos, eos, max_length, max_prompt_length)
    encoded: list[Encoded] = []
    problems: list[Problem] = []
    lost: list[tuple[int, ...]] = []
    for row in rows:
        try:
            short, counts = _encoded(row, limits)
        except BadRow as error:
            problems.append(Problem(row.source, raw_text(record_of(row)), *error.args))
            continue
        encoded.append(short)
        lost.append(counts)
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


def _encoded(row: Row, limits: _Limits) -> tuple[Encoded, tuple[int, ...]]:
    """A row in tokens, and how many its prompt and each completion have lost."""
    try:
        documents = [_document(row.prompt, c, row.last_turn, limits) for c in row.completions]
    except DataError:
        raise
    except ValueError as error:  # what the tokenizer says of a text
        raise BadRow("row", "texts that the tokenizer can encode", str(error)) from error
    prompt, completions = documents[0][0], [completion for _, completion, _ in documents]
    if not prompt or (limits.tokenizer.adds_bos and prompt[0] != limits.bos):
        prompt = [limits.bos, *prompt]
    short, cut = truncate_document(
        prompt,
        completions,
        max_length=limits.max_length,
        max_prompt_length=limits.max_prompt_length,
        bos=limits.bos,
        eos=limits.eos,
    )
    _assert_distinct(cut)
    skipped = tuple(number for *_, number in documents)
    for k, (ids, number) in enumerate(zip(cut, skipped, strict=True)):
        if number and len(ids) < number + 2:
            raise BadRow(
                f"completions[{k}]",
                f"room for its last turn in max_length = {limits.max_length}",
                f"{len(short)} prompt tokens and {number} of the turns before it",
                "raise max_length",
            )
    before, after = (prompt, *completions), (short, *cut)
    arrays = [np.asarray(ids, np.int32) for ids in after]
    about = row.ranks, row.weight, row.votes, row, skipped if any(skipped) else ()
    lost = tuple(len(a) - len(b) for a, b in zip(before, after, strict=True))
    return Encoded(arrays[0], tuple(arrays[1:]), *about), lost


def _document(
    prompt: Text, completion: Text, last_turn: bool, limits: _Limits
) -> tuple[list[int], list[int], int]:
    """Ids of the prompt, without an added BOS, and of one completion, EOS included.

    And how many of the completion's the loss leaves out: those before its last turn.
    """
    eos, decode = limits.eos, limits.tokenizer.decode
    start, before, whole = _texts(prompt, completion, last_turn, limits.tokenizer)
    ids = list(limits.encode(whole))
    num = _num_before(start, ids, limits)
    skipped = _num_before(before, ids, limits) - num
    body = ids[num:]
    while eos in body:
        last = len(body) - 1 - body[::-1].index(eos)
        if decode(body[last + 1 :]).strip():
            break
        body = body[:last]
    if len(body) <= skipped:
        raise BadRow("completion", "at least one token before EOS", shown(completion))
    if isinstance(completion, str) and eos in body:
        raise BadRow("completion", f"EOS, token {eos}, at the end only", shown(completion))
    return ids[:num], [*body, eos], skipped


def _num_before(start: str, ids: list[int], limits: _Limits) -> int:
    """How many tokens of a document its start has, which must end where a token ends."""
    start_ids = list(limits.encode(start)) if start else []
    if ids[: len(start_ids)] == start_ids:
        return len(start_ids)
    first = next(n for n, a in enumerate(start_ids) if ids[n : n + 1] != [a])
    decode = limits.tokenizer.decode
    alone, merged = (decode(part[first : first + 1]) for part in (start_ids, ids))
    raise BadRow(
        "prompt",
        f"a prompt whose tokens the document begins with, token {first} being {alone!r}",
        f"{merged!r}, a token across the end of the prompt {start[-20:]!r}",
        "move the white space at the end of the prompt to the start of the completion"
        if start[-1:].isspace()
        else "let the prompt end where a word ends",
    )


def _texts(
    prompt: Text, completion: Text, last_turn: bool, tokenizer: TextTokenizer
) -> tuple[str, str, str]:
    """The prompt, what comes before the turns that count, and the whole document.

    Conversations are written by the chat template.
    """
    if isinstance(prompt, str):
        return prompt, prompt, prompt + cast(str, completion)
    if tokenizer.chat_template is None:
        raise DataError(
            "the rows are conversations and the tokenizer has no chat template: expected a "
            "template, found none; pass one (--chat_template=FILE, a Jinja template such as the "
            "chat_template of a tokenizer_config.json), or write prompts and completions as text"
        )
    turns = cast(tuple, completion)
    earlier = turns[:-1] if last_turn else ()
    try:
        start = tokenizer.render_chat(list(prompt), add_generation_prompt=True)
        before = start
        if earlier:
            before = tokenizer.render_chat([*prompt, *earlier], add_generation_prompt=True)
        whole = tokenizer.render_chat([*prompt, *turns])
    except ValueError as error:
        raise BadRow("prompt", "a conversation for the chat template", str(error)) from error
    for part in (start, before):
        if not whole.startswith(part):
            raise BadRow(
                "prompt",
                f"a template that begins the whole conversation with its prompt, ...{part[-40:]!r}",
                f"...{whole[max(len(part) - 40, 0) : len(part)]!r}",
                "the template's generation prompt must be what it writes before an answer",
            )
    return start, max(start, before, key=len), whole  # turns that a template hides have no text


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
