import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from experiments.judgements import baselines, regression
from experiments.judgements.baselines import bradley_terry, length, ngrams, score
from experiments.judgements.datasets import Judgements, Pair, load_judgements, pair_rows
from shatter.data import Row


def voted(a: str, b: str, *votes: float, prompt: str = "") -> list[Row]:
    return pair_rows(Pair(prompt, (a, b), votes, ""))


def by_text(table: dict[str, float], rows: list[Row]) -> np.ndarray:
    return np.array([[table[str(text)] for text in row.completions] for row in rows])


def answers(
    utilities: dict[str, float], num_pairs: int, *, seed: int, num_votes: int = 5
) -> list[Row]:
    """Draws votes on random pairs by Luce's rule."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_pairs):
        a, b = (list(utilities)[i] for i in rng.choice(len(utilities), 2, replace=False))
        first = int(rng.binomial(num_votes, expit(utilities[a] - utilities[b])))
        rows += voted(a, b, first, num_votes - first)
    return rows


def test_the_same_text_under_another_prompt_is_another_item():
    rows = voted("a", "b", 9, 1, prompt="x") + voted("a", "b", 1, 9, prompt="y")
    gaps = np.diff(bradley_terry(rows, 1e-3)(rows))[:, 0]
    np.testing.assert_allclose(gaps, np.log(9) * np.array([-1, -1, 1, 1]), rtol=1e-2)


def test_unusable_rows_are_refused():
    rows = voted("a", "b", 3, 1)
    with pytest.raises(ValueError, match=r"row 0 \(no source\).*ranks \(1, -1\)"):
        bradley_terry([Row("", ("a", "b"), (1, -1))])
    with pytest.raises(ValueError, match=r"expected a ridge above 0.*found 0"):
        bradley_terry(rows, 0)


def test_bradley_terry_recovers_utilities():
    rng = np.random.default_rng(0)
    table = {f"item {i}": float(u) for i, u in enumerate(rng.normal(size=8))}
    rows = answers(table, 3000, seed=1)
    utility = bradley_terry(rows)
    texts = list(table)
    asked = [Row("", (texts[0], text), (1, 2)) for text in texts[1:]]
    gaps = np.diff(utility(asked))[:, 0]
    np.testing.assert_allclose(gaps, np.diff(by_text(table, asked))[:, 0], atol=0.15)
    np.testing.assert_array_equal(utility([Row("", ("never", "seen"), (1, 2))]), [[0, 0]])


def test_bradley_terry_is_the_dense_fit_of_another_experiment():
    from experiments.inclusive.classical import fit_bradley_terry

    wins = np.array([[0, 3, 1, 0], [1, 0, 4, 2], [2, 2, 0, 0], [1, 0, 5, 0]], float)
    names = "abcd"
    pairs = [(i, j) for i in range(4) for j in range(i)]
    rows = [row for i, j in pairs for row in voted(names[i], names[j], wins[i, j], wins[j, i])]
    got = bradley_terry(rows, 0.7)([Row("", ("a", name), (1, 2)) for name in names])
    expected = fit_bradley_terry(wins, ridge=0.7)
    np.testing.assert_allclose(got[:, 1], expected, atol=1e-5)


@pytest.mark.parametrize("fit", [bradley_terry, length, ngrams])
def test_ties_are_half_votes_or_none(fit: Callable[..., baselines.Utility]):
    options = {} if fit is length else {"ridge": 0.1}
    asked = voted("a b", "a b c", 1, 0)

    def gap(*votes: float, **more: float) -> float:
        rows = voted("a b", "a b c", *votes) + voted("a b c", "a b c d e", 1, 1)
        utilities = fit(rows, **options, **more)(asked)
        return float(utilities[0, 0] - utilities[0, 1])

    assert gap(6, 2, 4) == pytest.approx(gap(8, 4), abs=1e-4)
    assert gap(6, 2, 4, ties=0.0) == pytest.approx(gap(6, 2), abs=1e-4)
    assert 0.1 < gap(6, 2, 4) < gap(6, 2, 4, ties=0.0) - 0.1


def test_length_learns_which_length_is_liked():
    texts = {"x" * n: -2 * abs(math.log(n / 10)) for n in range(2, 60)}  # 10 characters are best
    utility = length(answers(texts, 1500, seed=0))
    asked = [Row("", ("x" * 10, "x" * n), (1, 2)) for n in (2, 3, 30, 59)]
    gaps = np.diff(utility(asked))[:, 0]
    assert (gaps < -0.5).all()


def test_ngrams_know_new_texts_by_their_parts():
    rng = np.random.default_rng(0)
    words = {f"{a}{b}{c}": float(rng.normal()) for a in "bdk" for b in "aeo" for c in "lmn"}
    texts = [" ".join(rng.choice(list(words), 4)) for _ in range(400)]
    table = {text: sum(words[w] for w in text.split()) for text in texts}
    shown, new = (dict(list(table.items())[i::2]) for i in (0, 1))
    train, held = answers(shown, 1500, seed=1), answers(new, 500, seed=2)
    utility = ngrams(train)
    got = score(held, utility(held))
    best = score(held, by_text(table, held))
    nothing = score(held, bradley_terry(train)(held))
    assert nothing["log_loss"] == pytest.approx(math.log(2))
    assert nothing["accuracy"] == 0.5
    assert best["log_loss"] < got["log_loss"] < 0.3 * math.log(2) + 0.7 * best["log_loss"]
    np.testing.assert_array_equal(got["log_loss"], score(held, ngrams(train)(held))["log_loss"])


def test_a_ridge_for_new_items_is_chosen_by_new_items():
    few = [row for i in range(40) for row in voted(f"a{i}", f"a{(i + 1) % 40}", 1, 2)]
    pairs = baselines.to_pairs(few)
    fit, held = regression.new_part(pairs)
    assert set(pairs.compared[fit].ravel()).isdisjoint(pairs.compared[held].ravel())
    assert min(len(fit), len(held)) > 0
    many = [row for p in range(20) for row in voted("a", "b", 1, 2, prompt=f"p{p}")]
    fit, held = regression.new_part(baselines.to_pairs(many))
    assert [len(fit), len(held)] == [16, 4]


@pytest.mark.slow
def test_the_binary_says_what_to_pass(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.judgements.baselines", "--dataset=ukp_humour"]
    done = subprocess.run(
        [*command, f"--data_dir={tmp_path}"],
        capture_output=True,
        text=True,
        env={"PATH": "", "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        cwd=Path(baselines.__file__).parents[2],
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: items.jsonl was not found")
    assert "--data_dir=FOLDER" in done.stderr


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    texts = {"x" * n: float(n) / 10 for n in range(2, 30)}
    rows = [answers(texts, 200, seed=s) + voted("x" * 2, "x" * 3, 0, 0, 5) for s in (0, 1, 2)]
    monkeypatch.setattr(
        baselines, "load_judgements", lambda *_, **__: Judgements(*rows, "somebody (CC0)")
    )
    baselines.print_baselines(baselines.Config(("ukp_humour",), num_splits=2))
    printed = capsys.readouterr().out
    assert "somebody (CC0)" in printed
    for part in ("known", "new"):
        for name in baselines.BASELINES:
            lines = [line for line in printed.splitlines() if part in line and f" {name} " in line]
            assert [line.split("│")[3].strip() for line in lines] == ["0.5", "0"]


# Fitted by others with their own code to other splits (see the tolerances): log-loss and accuracy.
def test_humour_is_as_others_found_it(data_dir: Path):
    got = load_judgements("ukp_humour", data_dir=data_dir)
    known = score(got.known, bradley_terry(got.train)(got.known))
    assert known["log_loss"] == pytest.approx(0.6155, abs=0.012)
    assert known["accuracy"] == pytest.approx(0.736, abs=0.03)
    new = score(got.new, length(got.train)(got.new))
    assert new["log_loss"] == pytest.approx(0.666, abs=0.012)


@pytest.mark.slow
def test_ngrams_on_new_jokes(data_dir: Path):
    got = load_judgements("ukp_humour", data_dir=data_dir)
    new = score(got.new, ngrams(got.train)(got.new))
    assert new["log_loss"] == pytest.approx(0.635, abs=0.02)


@pytest.mark.parametrize(("ties", "expected"), [(0.0, 0.462), (0.5, 0.469)])
def test_arguments_are_as_others_found_them(data_dir: Path, ties: float, expected: float):
    got = load_judgements("ukp_convarg", data_dir=data_dir)
    known = score(got.known, bradley_terry(got.train, ties=ties)(got.known))
    assert known["log_loss"] == pytest.approx(expected, abs=0.012)
    assert known["accuracy"] == pytest.approx(0.852, abs=0.04)
