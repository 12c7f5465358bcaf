"""Small projects for tests: their files, their flags, and somebody who answers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shatter.cli.label import asking, run
from shatter.cli.label.config import LearnConfig, ProposeConfig
from shatter.cli.label.queries import read_queries
from shatter.cli.label.writer import open_writer

# The same in all tests, so that they share compiled programs.
SIZES = {
    "num_members": 3,
    "learning_rate": 0.1,
    "num_steps": 30,
    "batch_size": 4,
    "max_length": 24,
    "lora_r": 2,
}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


POOL = [
    {"prompt": f"{'abcde'[n]} ", "completions": ["a", "bb", "ab c", "d" * (n + 1)]}
    for n in range(5)
]
VOTES = [{"prompt": "", "completions": [f"a{x}", f"b{x}"], "votes": [3, 1]} for x in "abcdefgh"]


def answer_all(config: ProposeConfig, choose: Callable[[int], int | str] = lambda n: 0) -> int:
    folder = Path(config.project)
    with open_writer(folder / "answers.jsonl") as writer:
        queries = read_queries(folder / "queries")
        answered = {event.query_id for event in writer.events}
        left = [query for name, query in queries.items() if name not in answered]
        for n, query in enumerate(left):
            order = range(len(query.completions))
            event = asking.answer(query, choose(n), annotator="ann", order=order, seconds=1.0)
            writer.append(event._replace(event_id=f"{query.query_id}-ann"))
    return len(left)


def assert_a_cycle_works(config: ProposeConfig) -> None:
    """Proposes, answers, learns and proposes again through the command."""
    run.experiment(config)
    assert answer_all(config) == 4
    run.experiment(LearnConfig(project=config.project))
    folder = Path(config.project)
    row = json.loads((folder / "summary.json").read_text())["after"]
    assert row["answers"] == 4
    assert {"held/log_loss", "held/joint_log_loss", "held/disagreement"} <= row.keys()
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 20
    np.testing.assert_allclose(sum(s["share"] for s in scores if s["prompt_id"] == 0), 1, atol=1e-5)
    assert (folder / "label.png").stat().st_size > 1000
    # The next round asks what was not asked, by the members as they are now.
    run.experiment(config)
    queries = list(read_queries(folder / "queries").values())
    assert [query.round for query in queries] == [0] * 4 + [1] * 4
    assert len({tuple(sorted(query.item_ids)) for query in queries}) == 8
    assert queries[0].model != queries[4].model
    assert all(query.arm == "v_optimal" and query.budget == 4 for query in queries)
