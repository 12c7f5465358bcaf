"""Encodes rows of text as tokens: the prompt once, and every completion with one EOS at its end."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from shatter.data.report import (
    BadRow,
    OnBadRow,
    Problem,
    Report,
    RowsError,
    raw_text,
    settle,
)
from shatter.data.rows import Row, record_of
from shatter.data.texts import Text, shown
from shatter.data.truncation import truncate_document, truncate_prompt

_UNLIMITED = 2**30


class TextTokenizer(Protocol):
    """The tokenizer that rows need; `shatter.models.Tokenizer` is one.

    Attributes:
      bos: the id of the token that begins a document; None = EOS serves in its place.
      eos: the id of the token that ends a document; rows cannot be encoded without it.
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
        """Returns the ids of a text, without added special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""

    def render_chat(self, messages: Any, *, add_generation_prompt: bool = False) -> str:
        """Returns a conversation as text with special tokens; raises ValueError if it cannot."""


class Encoded(NamedTuple):
    """A row as tokens.

    Attributes:
      prompt: int32 `[P]`, at least one token.
      completions: K arrays, int32 `[C_k]`, each ending with EOS.
      ranks: K ranks; smaller is better, equal = unresolved, < 0 = not shown.
      weight: how much the answer counts.
      votes: how many people chose each completion, as in `Row`.
      row: the row that was encoded.
      skipped: how many of the first tokens of each completion the loss leaves out, those of turns
        before the last one; empty if none are left out.
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
        """The number of tokens of the longest document, prompt included."""
        return len(self.prompt) + max(map(len, self.completions))


class _Encoding(NamedTuple):
    """The tokenizer, with its `encode` cached, and the limits on lengths."""

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
    """Encodes prompt and completion as one text, which is then cut after the prompt's tokens.

    A document begins with BOS if the tokenizer adds it or the prompt is empty, or with EOS if there
    is no BOS. A document that is too long first loses prompt tokens on the left, after BOS (see
    `truncate_prompt`): the prompt is cut to `max_prompt_length`, or as far as the longest
    completion needs, but at least half of `max_length` is left to it. Then completions lose tokens
    on the right, before EOS. A row whose prompt says more than that of its `origin` is bad if it is
    too long.

    Rows that were made from one row to say who answers stand and fall together with it: the bad
    rows of the report are the origins, each once, and so are the rows that it counts.

    The loss counts the whole completion with its EOS, including messages of tools and users in it;
    in a row with `last_turn` only the last message of the completion.

    Args:
      rows: the rows.
      tokenizer: the tokenizer of the model.
      max_length: the largest number of tokens of a document, at least 3.
      max_prompt_length: the largest number of tokens of a prompt.
      on_bad_row: "fail" raises RowsError with the first bad row; "skip" leaves bad rows out.
      bad_rows_path: the file to which "skip" writes the bad rows with the reasons, those of
        `report` included, as JSON lines.
      report: the report of reading the rows, which the returned one continues.

    Returns:
      The encoded rows, in order, and the report.

    Raises:
      RowsError: if a row is bad and `on_bad_row` is "fail", no good row is left, the tokenizer has
        no EOS, or it has no chat template and a row is a conversation.
      ValueError: if a length is too small.
    """
    if max_length < 3 or (max_prompt_length is not None and max_prompt_length < 1):
        raise ValueError(
            "expected max_length >= 3 (BOS, a token, EOS) and max_prompt_length >= 1, found "
            f"{max_length} and {max_prompt_length}"
        )
    encoding = _encoding(tokenizer, max_length, max_prompt_length)
    return _encode(rows, encoding, _encoded, on_bad_row, bad_rows_path, report)


def encode_prompts(
    rows: Sequence[Row],
    tokenizer: TextTokenizer,
    *,
    max_prompt_length: int | None = None,
    on_bad_row: OnBadRow = "fail",
    report: Report | None = None,
) -> tuple[list[Encoded], Report]:
    """Encodes prompts that a model will complete; what completions the rows have is not read.

    A prompt is encoded alone, as it is where a model answers, so that its last word may be one that
    a completion would change (`story.` before `.`). It begins and is cut as in `encode_rows`.

    Args:
      rows: the rows.
      tokenizer: the tokenizer of the model.
      max_prompt_length: the largest number of tokens of a prompt; None = all are kept.
      on_bad_row: as in `encode_rows`.
      report: the report of reading the rows, which the returned one continues.

    Returns:
      The prompts, each with EOS as its only completion, and the report.

    Raises:
      RowsError: as `encode_rows`.
      ValueError: if `max_prompt_length` is below 1.
    """
    if max_prompt_length is not None and max_prompt_length < 1:
        raise ValueError(f"expected max_prompt_length >= 1, found {max_prompt_length}")
    encoding = _encoding(tokenizer, _UNLIMITED, max_prompt_length)
    return _encode(rows, encoding, _encoded_prompt, on_bad_row, None, report)


def _encoding(
    tokenizer: TextTokenizer, max_length: int, max_prompt_length: int | None
) -> _Encoding:
    """Returns how texts are encoded.

    Raises:
      RowsError: if the tokenizer has no EOS.
    """
    eos = tokenizer.eos
    if eos is None:
        raise RowsError(
            "the tokenizer has no EOS, so no completion can end: expected eos_token in "
            "tokenizer_config.json or eos_token_id in config.json, found neither"
        )
    encode = functools.lru_cache(4096)(lambda text: tuple(tokenizer.encode(text)))
    bos = eos if tokenizer.bos is None else tokenizer.bos
    return _Encoding(tokenizer, encode, bos, eos, max_length, max_prompt_length)


def _encode(
    rows: Sequence[Row],
    encoding: _Encoding,
    encode: Callable[[Row, _Encoding], tuple[Encoded, tuple[int, ...]]],
    on_bad_row: OnBadRow,
    bad_rows_path: str | Path | None,
    report: Report | None,
) -> tuple[list[Encoded], Report]:
    """Encodes rows one by one; see `encode_rows`."""
    found: list[tuple[Encoded, tuple[int, ...]]] = []
    problems: list[Problem] = []
    bad: set[int] = set()
    for row in rows:
        origin = row.origin or row
        try:
            found.append(encode(row, encoding))
        except BadRow as error:
            if row.origin is None or id(origin) not in bad:
                problems.append(Problem(row.source, raw_text(record_of(origin)), *error.args))
            bad.add(id(origin))
    found = [(e, lost) for e, lost in found if id(e.row.origin or e.row) not in bad]
    encoded, lost = [e for e, _ in found], [lost for _, lost in found]
    report = _with_counts(report or Report(read=len(rows)), encoded, problems, lost)
    settle(report, len(problems), on_bad_row, bad_rows_path)
    return encoded, report


def _with_counts(
    report: Report, encoded: list[Encoded], problems: list[Problem], lost: list[tuple[int, ...]]
) -> Report:
    """Returns the report with the counts of encoding.

    Args:
      report: the report of reading the rows.
      encoded: the rows that could be encoded.
      problems: the problems of the others.
      lost: how many tokens the prompt and each completion have lost, for every encoded row.
    """
    rows = [row.row for row in encoded]
    plain = [id(row) for row in rows if row.origin is None]
    others = {id(row.origin) for row in rows if row.origin is not None}.difference(plain)
    return report._replace(
        kept=len(plain) + len(others),
        skipped=report.skipped + len(problems),
        truncated_prompts=sum(of_prompt > 0 for of_prompt, *_ in lost),
        truncated_completions=sum(count > 0 for _, *counts in lost for count in counts),
        truncated_tokens=sum(map(sum, lost)),
        tokens=sum(len(row.prompt) + len(c) for row in encoded for c in row.completions),
        problems=report.problems + tuple(problems),
    )


def _encoded(row: Row, encoding: _Encoding) -> tuple[Encoded, tuple[int, ...]]:
    """Encodes a row; also returns how many tokens its prompt and each completion have lost."""
    try:
        documents = [_document(row.prompt, c, row.last_turn, encoding) for c in row.completions]
    except RowsError:
        raise
    except ValueError as error:  # from the tokenizer
        raise BadRow("row", "texts that the tokenizer can encode", str(error)) from error
    prompt, completions = documents[0][0], [completion for _, completion, _ in documents]
    if not prompt or (encoding.tokenizer.adds_bos and prompt[0] != encoding.bos):
        prompt = [encoding.bos, *prompt]
    short, cut = truncate_document(
        prompt,
        completions,
        max_length=encoding.max_length,
        max_prompt_length=encoding.max_prompt_length,
        bos=encoding.bos,
        eos=encoding.eos,
    )
    says_who = row.origin is not None and row.origin.prompt != row.prompt
    if says_who and len(short) < len(prompt):
        limit = "max_length" if encoding.max_prompt_length is None else "max_prompt_length"
        raise BadRow(
            "prompt",
            f"room for a prompt that says who answers, {len(prompt)} tokens, in {limit} = "
            f"{getattr(encoding, limit)}",
            f"room for {len(short)} beside a completion of {max(map(len, completions))} tokens",
            f"raise {limit}, or leave out its group or annotator",
        )
    _assert_distinct(cut)
    skipped = tuple(number for *_, number in documents)
    for k, (ids, number) in enumerate(zip(cut, skipped, strict=True)):
        if number and len(ids) < number + 2:
            raise BadRow(
                f"completions[{k}]",
                f"room for its last turn in max_length = {encoding.max_length}",
                f"{len(short)} prompt tokens and {number} of the turns before it",
                "raise max_length",
            )
    before, after = (prompt, *completions), (short, *cut)
    arrays = [np.asarray(ids, np.int32) for ids in after]
    about = row.ranks, row.weight, row.votes, row, skipped if any(skipped) else ()
    lost = tuple(len(a) - len(b) for a, b in zip(before, after, strict=True))
    return Encoded(arrays[0], tuple(arrays[1:]), *about), lost


def _encoded_prompt(row: Row, encoding: _Encoding) -> tuple[Encoded, tuple[int, ...]]:
    """Encodes the prompt of a row; also returns how many tokens it has lost."""
    try:
        start = _start_text(row.prompt, encoding.tokenizer)
        prompt = list(encoding.encode(start)) if start else []
    except RowsError:
        raise
    except ValueError as error:  # from the tokenizer
        raise BadRow("prompt", "a text that the tokenizer can encode", str(error)) from error
    if not prompt or (encoding.tokenizer.adds_bos and prompt[0] != encoding.bos):
        prompt = [encoding.bos, *prompt]
    limit = encoding.max_prompt_length or len(prompt)
    short = np.asarray(truncate_prompt(prompt, limit, bos=encoding.bos), np.int32)
    eos = np.asarray([encoding.eos], np.int32)
    found = Encoded(short, (eos,), row.ranks, row.weight, row.votes, row)
    return found, (len(prompt) - len(short), 0)


def _document(
    prompt: Text, completion: Text, last_turn: bool, encoding: _Encoding
) -> tuple[list[int], list[int], int]:
    """Encodes one document.

    Returns:
      The ids of the prompt, without an added BOS; those of the completion, with EOS; and how many
      of the completion's first ids the loss leaves out, because they are before its last turn.
    """
    eos, decode = encoding.eos, encoding.tokenizer.decode
    start, before, whole = _texts(prompt, completion, last_turn, encoding.tokenizer)
    ids = list(encoding.encode(whole))
    num = _num_before(start, ids, encoding)
    skipped = _num_before(before, ids, encoding) - num
    body = ids[num:]
    # A template may close the last turn with EOS, followed by white space at most.
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


def _num_before(start: str, ids: list[int], encoding: _Encoding) -> int:
    """Returns how many tokens the start of a document has; it must end where a token ends."""
    start_ids = list(encoding.encode(start)) if start else []
    if ids[: len(start_ids)] == start_ids:
        return len(start_ids)
    first = next(n for n, a in enumerate(start_ids) if ids[n : n + 1] != [a])
    decode = encoding.tokenizer.decode
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
    """Returns the prompt, the text before the turns that count, and the whole document.

    Conversations are rendered by the chat template.
    """
    start = _start_text(prompt, tokenizer)
    if isinstance(prompt, str):
        return start, start, start + cast(str, completion)
    turns = cast(tuple, completion)
    earlier = turns[:-1] if last_turn else ()
    try:
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
    # `before` can be shorter than `start` where the template hides earlier turns.
    return start, max(start, before, key=len), whole


def _start_text(prompt: Text, tokenizer: TextTokenizer) -> str:
    """Returns a prompt as text; a conversation is rendered by the chat template."""
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise RowsError(
            "the rows are conversations and the tokenizer has no chat template: expected a "
            "template, found none; pass one (--chat_template=FILE, a Jinja template such as the "
            "chat_template of a tokenizer_config.json), or write prompts and completions as text"
        )
    try:
        return tokenizer.render_chat(list(prompt), add_generation_prompt=True)
    except ValueError as error:
        raise BadRow("prompt", "a conversation for the chat template", str(error)) from error


def _assert_distinct(completions: Sequence[list[int]]) -> None:
    """Raises BadRow if two completions have the same tokens."""
    for k, ids in enumerate(completions):
        if ids in completions[:k]:
            raise BadRow(
                f"completions[{k}]",
                "a completion of its own",
                f"the {len(ids)} tokens of completions[{completions.index(ids)}], after truncation",
                "raise max_length if they differ further on",
            )
