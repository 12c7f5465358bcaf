"""The library: what it says, what it pays, what is new in its splits, and its expert."""

import itertools

import jax
import numpy as np
import pytest

from shatter.environments import (
    LIBRARY_ALPHABET,
    SPLITS,
    Evidence,
    character_codec,
    host_scripted_rollout,
    library,
    library_expert,
    make_corpus,
)

pytestmark = pytest.mark.slow

CORPUS = make_corpus(jax.random.key(0))
CODEC = character_codec(LIBRARY_ALPHABET)
LIMITS = {"max_action_length": 60, "end_of_action": 0, "codec": CODEC}
KEYS = jax.random.split(jax.random.key(1), 40)


def session(*commands: str, split: str = "train", key=KEYS[0], **settings):
    """Returns what is said, paid and done after every command, and the last state."""
    environment = library(CORPUS, split=split, price=0.125, **settings)
    state, _ = environment.reset(key)
    answers = []
    for command in commands:
        state, said, reward, done = environment.step(state, command)
        answers.append((said, reward, done, environment.is_invalid(state)))
    return answers, state


def question(split="train", key=KEYS[0]):
    return library(CORPUS, split=split).reset(key)[0].question


def path(asked) -> list[str]:
    """Returns the commands that lead to the proof of an answer."""
    commands = []
    for title, paragraph in asked.evidence:
        commands += [f"open {title}\n", *["next\n"] * paragraph]
    return commands


def test_the_answer_is_on_two_pages_and_not_in_the_prompt():
    for split in SPLITS:
        for asked in CORPUS.questions[split]:
            assert asked.answer.lower() not in asked.text.lower()
            first, second = asked.evidence
            assert asked.company == first.title
            assert second.title in CORPUS.pages[first.title][first.paragraph]
            assert second.title not in asked.text
            assert asked.answer in CORPUS.pages[second.title][second.paragraph]
            assert all(asked.answer not in text for text in CORPUS.pages[first.title])
            assert set(asked.text) <= set(LIBRARY_ALPHABET)
    assert all(set("".join(page)) <= set(LIBRARY_ALPHABET) for page in CORPUS.pages.values())


def test_each_split_is_new_in_its_own_way():
    sets = {
        split: {
            "texts": {asked.text for asked in asked_of},
            "companies": {asked.company for asked in asked_of},
            "facts": {(asked.company, asked.kind) for asked in asked_of},
            "wordings": {(asked.kind, asked.phrasing) for asked in asked_of},
            "pages": {place.title for asked in asked_of for place in asked.evidence},
        }
        for split, asked_of in CORPUS.questions.items()
    }
    assert tuple(sets) == SPLITS
    for one, other in itertools.combinations(SPLITS, 2):
        assert not sets[one]["texts"] & sets[other]["texts"]
    train = sets["train"]
    assert sets["questions"]["companies"] == train["companies"]
    assert not sets["questions"]["facts"] & train["facts"]
    assert sets["questions"]["wordings"] == train["wordings"]
    for other in ("train", "questions", "phrasings"):
        assert not sets["entities"]["pages"] & sets[other]["pages"]
    assert sets["entities"]["wordings"] == train["wordings"]
    assert sets["phrasings"]["facts"] == train["facts"]
    assert not sets["phrasings"]["wordings"] & train["wordings"]
    assert {len(asked_of) for asked_of in CORPUS.questions.values()} == {32, 16, 24}


def test_search_open_next_quote():
    asked = question()
    title = asked.company
    pages = CORPUS.pages[title]
    answers, state = session(
        f"search {title}\n",
        f"search {title.lower()} founded\n",
        "search nowhere\n",
        f"open {title}\n",
        "next\n",
        "quote founded\n",
    )
    said = [answer[0] for answer in answers]
    assert said == [
        f"found: {title}\n",
        f"found: {title}\n",
        "found: nothing\n",
        f"{pages[0]}\n",
        f"{pages[1]}\n",
        "quoted.\n",
    ]
    assert all(answer[1:] == (-0.125, False, False) for answer in answers)
    assert state.quotes == ((Evidence(title, 1), "founded"),)


def test_a_search_shows_titles_first_and_at_most_three():
    town = next(title for title in CORPUS.pages if title.endswith("ville"))
    ((said, *_),), state = session(f"search {town}\n")
    assert state.found[0] == town
    assert said == f"found: {', '.join(state.found)}\n"
    ((_, *_),), state = session("search is\n")
    assert len(state.found) == 3


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["search Rascorp"], "error: the line has no end."),
        (["dance\n"], "error: search, open, next, quote or answer?"),
        (["\n"], "error: search, open, next, quote or answer?"),
        (["search\n"], "error: search, open, next, quote or answer?"),
        (["answer \n"], "error: search, open, next, quote or answer?"),
        (["next page\n"], "error: search, open, next, quote or answer?"),
        (["open Nowhere\n"], "error: there is no such page."),
        (["next\n"], "error: no page is open."),
        (["quote a\n"], "error: no page is open."),
        (["open {}\n", "next\n", "next\n", "next\n"], "error: the page ends here."),
        (["open {}\n", "quote was founded\n"], "error: the paragraph does not say so."),
    ],
    ids=str,
)
def test_errors_are_invalid_and_cost_a_step(commands: list[str], said: str):
    commands = [command.format(question().company) for command in commands]
    answers, state = session(*commands)
    assert answers[-1] == (f"{said}\n", -0.125, False, True)
    assert not any(invalid for *_, invalid in answers[:-1])
    assert state.is_invalid
    assert set(said) <= set(LIBRARY_ALPHABET)


def test_what_answers_are_worth():
    key = next(key for key in KEYS if question(key=key).answer.istitle())  # lower case is wrong
    asked = question(key=key)
    proof = f"quote {CORPUS.pages[asked.evidence[1].title][asked.evidence[1].paragraph]}\n"
    right, wrong = f"answer {asked.answer}\n", f"answer {asked.company}\n"
    elsewhere = [f"open {asked.company}\n", f"quote {asked.company}\n"]
    for commands, worth in [
        ([*path(asked), proof, right], 1.0),
        ([*path(asked), f"quote {asked.answer}\n", right], 1.0),
        ([*path(asked), right], 0.25),
        ([right], 0.25),
        ([*elsewhere, right], 0.25),
        ([*path(asked), proof, wrong], 0.0),
        ([*path(asked), proof, right.lower()], 0.0),
    ]:
        answers, _ = session(*commands, key=key, unquoted_reward=0.25)
        assert answers[-1] == ("", worth - 0.125, True, False)
        assert all(reward == -0.125 for _, reward, *_ in answers[:-1])


@pytest.mark.parametrize("split", SPLITS)
def test_the_expert_is_always_right_at_quality_one(split: str):
    """By the shortest way: to search, open and read on, twice, to quote and to answer."""
    environment, expert = library(CORPUS, split=split, price=0.02), library_expert(CORPUS)
    for key in KEYS[:8]:
        transcript = host_scripted_rollout(
            expert, key, environment, max_turns=12, max_length=700, **LIMITS
        )
        asked = question(split, jax.random.split(key)[0])
        num_steps = 6 + sum(place.paragraph for place in asked.evidence)
        assert (int(transcript.num_turns), bool(transcript.done)) == (num_steps, True)
        assert not transcript.num_invalid
        assert float(transcript.rewards.sum()) == pytest.approx(1 - 0.02 * num_steps, abs=1e-6)
        document = CODEC.decode(transcript.tokens[: int(transcript.valid.sum())])
        assert document.startswith(f"{asked.text}\nsearch {asked.company}\nfound: ")
        assert document.endswith(f"quoted.\nanswer {asked.answer}\n")


def test_the_expert_is_right_at_the_stated_rate_and_slower():
    quality, num = 0.7, 150
    environment, expert = library(CORPUS, price=0.0), library_expert(CORPUS, quality=quality)
    rights, excess = [], []
    for key in jax.random.split(jax.random.key(5), num):
        state, _ = environment.reset(key)
        done, reward, steps = False, 0.0, 0
        while not done:
            action = expert(jax.random.fold_in(key, steps), state)
            state, _, reward, done = environment.step(state, action)
            assert not state.is_invalid
            steps += 1
        rights.append(reward)
        excess.append(steps - 6 - sum(place.paragraph for place in state.question.evidence))
    assert set(rights) == {0.0, 1.0}
    assert abs(np.mean(rights) - quality) < 3.5 * np.sqrt(quality * (1 - quality) / num)
    assert min(excess) >= 0
    assert np.mean(excess) > 1


def test_keys_draw_questions_and_libraries():
    for split in SPLITS:  # by keys that were split, and by plain ones
        for keys in (jax.random.split(jax.random.key(1), 300), map(jax.random.key, range(300))):
            asked = {question(split, key).text for key in keys}
            assert asked == {found.text for found in CORPUS.questions[split]}
    assert make_corpus(jax.random.key(0)) == CORPUS
    assert make_corpus(jax.random.key(1)).pages.keys() != CORPUS.pages.keys()


def test_bad_settings_are_errors():
    with pytest.raises(ValueError, match="3 <= num_companies <= 30, found 31"):
        make_corpus(jax.random.key(0), num_companies=31)
    with pytest.raises(ValueError, match=r"one of \('train', .*\), found 'test'"):
        library(CORPUS, split="test")
    with pytest.raises(ValueError, match="price must not be negative, found -1"):
        library(CORPUS, price=-1)
    with pytest.raises(ValueError, match="between 0 and 1, found 2"):
        library_expert(CORPUS, quality=2)
