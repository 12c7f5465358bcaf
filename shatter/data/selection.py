"""Selects the rows from which an objective can learn, and reports what the others lack."""

from collections.abc import Sequence

from shatter.data.layouts import LABELLED_FALSE, LABELLED_TRUE
from shatter.data.report import Problem, Report, raw_text
from shatter.data.rows import Row, record_of
from shatter.data.texts import text_key


def demonstrations(rows: Sequence[Row]) -> tuple[list[Row], Report]:
    """Selects the rows whose best completion may be imitated.

    Left out are completions that are labelled false, and votes of people who chose none.

    Args:
      rows: rows of any layout.

    Returns:
      The rows, and a report in which every other row is a problem.
    """
    bad: dict[int, tuple[str, str, str]] = {}
    for n, row in enumerate(rows):
        if row.ranks == LABELLED_FALSE:
            bad[n] = "label", "a completion to imitate: without a label, or labelled true", "false"
        elif len(row.votes or ()) > len(row.completions) and len(set(row.ranks)) == 1:
            bad[n] = "votes", "votes for a completion to imitate", f"{row.weight:g} for none"
    return _split(rows, bad)


def comparisons(rows: Sequence[Row]) -> tuple[list[Row], Report]:
    """Selects the rows that compare completions, after joining labelled ones by `pair_labels`.

    Args:
      rows: rows of any layout.

    Returns:
      The rows of at least two completions that were shown, and a report in which every other row is
      a problem. A joined row stands at the place of its first completion.
    """
    paired, report = pair_labels(rows)
    expected = "at least two completions that were shown, or labels on completions of one prompt"
    kept, lone = _split(
        paired,
        {
            n: ("completions", expected, str(num))
            for n, row in enumerate(paired)
            if (num := sum(rank >= 0 for rank in row.ranks)) < 2
        },
    )
    problems = report.problems + lone.problems
    return kept, Report(len(rows), len(kept), len(problems), problems=problems)


def without_preference(rows: Sequence[Row]) -> tuple[Problem, ...]:
    """Returns a problem for every row from which no objective learns an order.

    Args:
      rows: the rows.

    Returns:
      The problems of the rows whose completions are all ranked the same, of which fewer than two
      were shown, or whose weight is 0.
    """
    problems: list[Problem] = []
    for row in rows:
        shown = [rank for rank in row.ranks if rank >= 0]
        if len(set(shown)) < 2:
            about = "ranks", "two completions of which one is better", f"the ranks {shown}"
        elif not row.weight > 0:
            about = "weight", "a number above 0", str(row.weight)
        else:
            continue
        problems.append(Problem(row.source, raw_text(record_of(row)), *about))
    return tuple(problems)


def _split(rows: Sequence[Row], bad: dict[int, tuple[str, str, str]]) -> tuple[list[Row], Report]:
    """Returns the rows that are not bad, and the report on the bad ones."""
    kept = [row for n, row in enumerate(rows) if n not in bad]
    problems = tuple(
        Problem(rows[n].source, raw_text(record_of(rows[n])), *about) for n, about in bad.items()
    )
    return kept, Report(len(rows), len(kept), len(bad), problems=problems)


def pair_labels(rows: Sequence[Row]) -> tuple[list[Row], Report]:
    """Joins the labelled completions of every prompt to one comparison, true above false.

    Args:
      rows: rows of a single labelled completion; all other rows are returned unchanged.

    Returns:
      One row for every prompt with both labels, at the place of its first row, and a report. A
      completion that is labelled both ways, and every row of a prompt with one label only, is a
      problem in it. The weight of a row is the mean weight of its completions. If a completion has
      the same label twice, the row with the larger weight counts.
    """
    prompts: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        key = text_key(row.prompt) if _is_labelled(row) else str(number)
        prompts.setdefault(key, []).append(row)
    paired: list[Row] = []
    bad: list[tuple[Row, str]] = []
    for same_prompt in prompts.values():
        if not _is_labelled(same_prompt[0]):
            paired += same_prompt
            continue
        clear, torn = _clear_labels(same_prompt)
        bad += [(row, "both labels on one completion") for row in torn]
        if len({row.ranks for row in clear}) == 2:
            paired.append(_joined(clear))
        else:
            bad += [(row, f"no completion labelled {row.ranks == LABELLED_FALSE}") for row in clear]
    expected = "completions of one prompt labelled true and others labelled false"
    problems = [
        Problem(row.source, raw_text(record_of(row)), "label", expected, found)
        for row, found in bad
    ]
    return paired, Report(len(rows), len(paired), len(bad), problems=tuple(problems))


def _is_labelled(row: Row) -> bool:
    return row.ranks in (LABELLED_TRUE, LABELLED_FALSE)


def _clear_labels(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Returns one row for every completion with one label, and all rows of those with both."""
    labels: dict[str, set[int]] = {}
    for row in rows:
        labels.setdefault(text_key(row.completions[0]), set()).add(row.ranks[0])
    clear: dict[str, Row] = {}
    torn = []
    for row in rows:
        key = text_key(row.completions[0])
        if len(labels[key]) > 1:
            torn.append(row)
        elif row.weight > clear.setdefault(key, row).weight:
            clear[key] = row
    return list(clear.values()), torn


def _joined(rows: Sequence[Row]) -> Row:
    """Joins rows of a single completion of the same prompt to one row."""
    first = rows[0]
    return first._replace(
        completions=tuple(row.completions[0] for row in rows),
        ranks=tuple(row.ranks[0] for row in rows),
        weight=sum(row.weight for row in rows) / len(rows),
        annotator=first.annotator if len({row.annotator for row in rows}) == 1 else None,
        group=first.group if len({row.group for row in rows}) == 1 else None,
    )
