"""Which rows teach an objective something, decided row by row, and what the others lack."""

from collections.abc import Sequence

from shatter.data.report import Problem, Report, raw_text
from shatter.data.rows import Row, record_of
from shatter.data.texts import text_key


def demonstrations(rows: Sequence[Row]) -> tuple[list[Row], Report]:
    """Leaves out what nobody wants to be imitated: labelled false, or by people who chose none.

    Args:
      rows: rows of any layout.

    Returns:
      The rows whose best completion may be imitated, and the report: every other row is a problem.
    """
    bad: dict[int, tuple[str, str, str]] = {}
    for n, row in enumerate(rows):
        if row.ranks == (2,):
            bad[n] = "label", "a completion to imitate: without a label, or labelled true", "false"
        elif len(row.votes or ()) > len(row.completions) and len(set(row.ranks)) == 1:
            bad[n] = "votes", "votes for a completion to imitate", f"{row.weight:g} for none"
    return _split(rows, bad)


def comparisons(rows: Sequence[Row]) -> tuple[list[Row], Report]:
    """Pairs labelled completions and leaves out every other row that compares nothing.

    Args:
      rows: rows of any layout.

    Returns:
      Rows of at least two completions that were shown, those of `pair_labels` at the place of their
      first, and the report: every row that has no partner is a problem.
    """
    paired, report = pair_labels(rows)
    expected = "at least two completions that were shown, or a label on this one and its like"
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
    """Names the comparisons from which no objective learns an order.

    Args:
      rows: the rows.

    Returns:
      A problem for every row whose completions are all ranked the same, of which fewer than two
      were shown, or whose weight is 0; as many as there are rows = there is nothing to learn.
    """
    found: list[Problem] = []
    for row in rows:
        shown = [rank for rank in row.ranks if rank >= 0]
        if len(set(shown)) < 2:
            about = "ranks", "two completions of which one is better", f"the ranks {shown}"
        elif not row.weight > 0:
            about = "weight", "a number above 0", str(row.weight)
        else:
            continue
        found.append(Problem(row.source, raw_text(record_of(row)), *about))
    return tuple(found)


def _split(rows: Sequence[Row], bad: dict[int, tuple[str, str, str]]) -> tuple[list[Row], Report]:
    """The rows that are not among the bad ones, and the report on these."""
    kept = [row for n, row in enumerate(rows) if n not in bad]
    problems = tuple(
        Problem(rows[n].source, raw_text(record_of(rows[n])), *about) for n, about in bad.items()
    )
    return kept, Report(len(rows), len(kept), len(bad), problems=problems)


def pair_labels(rows: Sequence[Row]) -> tuple[list[Row], Report]:
    """Makes comparisons of labelled completions: those of one prompt, true above false.

    Args:
      rows: rows of a single labelled completion (ranks `(1,)` or `(2,)`); others pass unchanged.

    Returns:
      One row a prompt that has both labels, at the place of its first row, and the report: a
      completion labelled both ways and every row of a prompt with one label only is a problem. The
      row weighs what its completions weigh on average. The same label twice says no more than
      once: the heavier row counts.
    """
    prompts: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        key = text_key(row.prompt) if row.ranks in ((1,), (2,)) else str(number)
        prompts.setdefault(key, []).append(row)
    paired: list[Row] = []
    bad: list[tuple[Row, str]] = []
    for same in prompts.values():
        if same[0].ranks not in ((1,), (2,)):
            paired += same
            continue
        labels: dict[str, set[int]] = {}
        for row in same:
            labels.setdefault(text_key(row.completions[0]), set()).add(row.ranks[0])
        torn = [row for row in same if len(labels[text_key(row.completions[0])]) > 1]
        bad += [(row, "both labels on one completion") for row in torn]
        clear: dict[str, Row] = {}
        for row in same:
            if row not in torn:
                before = clear.setdefault(text_key(row.completions[0]), row)
                if row.weight > before.weight:
                    clear[text_key(row.completions[0])] = row
        if len({row.ranks for row in clear.values()}) == 2:
            paired.append(_joined(list(clear.values())))
        else:
            bad += [(row, f"no completion labelled {row.ranks == (2,)}") for row in clear.values()]
    expected = "completions of one prompt labelled true and others labelled false"
    problems = [
        Problem(row.source, raw_text(record_of(row)), "label", expected, found)
        for row, found in bad
    ]
    return paired, Report(len(rows), len(paired), len(bad), problems=tuple(problems))


def _joined(rows: Sequence[Row]) -> Row:
    """Several labelled completions of one prompt as one row."""
    first = rows[0]
    return first._replace(
        completions=tuple(row.completions[0] for row in rows),
        ranks=tuple(row.ranks[0] for row in rows),
        weight=sum(row.weight for row in rows) / len(rows),
        annotator=first.annotator if len({row.annotator for row in rows}) == 1 else None,
        group=first.group if len({row.group for row in rows}) == 1 else None,
    )
