"""An update is the same however its rows are cut into batches, for every objective."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shatter import data, models
from shatter.cli.finetune import batches, history, learning
from shatter.cli.finetune.config import Config
from shatter.cli.finetune.learning import Frozen, Sampled, Trainable
from shatter.cli.finetune.objectives import OBJECTIVES, Mean
from shatter.cli.finetune.pretrained import Pretrained
from shatter.cli.finetune.task import Training
from shatter.data import Encoded, Row

VOCABULARY, WIDTH, LENGTH = 11, 4, 12
# Rows of two and of three completions; ties, slots not shown, votes; two answers to one comparison.
ANSWERS = [
    [((1, 2), 1.0)],
    [((2, 1), 40.0), ((1, 2), 3.0)],
    [((1, 1), 5.0)],
    [((1, 2, 3), 0.5)],
    [((2, 1, 1), 2.0), ((1, 2, 2), 7.0)],
    [((1, -1, 2), 1e-3)],
    [((2, 1), 0.0)],
]
VARIANTS = [
    {"objective": "ilhf", "utility": "sum"},
    {"objective": "ilhf", "utility": "mean", "utility_scale": 3.0, "kl_weight": 0.7},
    {"objective": "ilhf", "utility": "tilt"},
    *({"objective": name} for name in ("dpo", "ipo", "slic", "sft", "reward_model")),
]


def bigrams() -> Pretrained:
    """Returns a model whose predictions depend only on the last token; it compiles quickly."""
    embed = lambda params, tokens: params["embedding"][tokens]
    lm = models.LanguageModel(
        init=lambda key: {},
        apply=lambda params, tokens, *, valid=None: embed(params, tokens) @ params["out"],
        features=lambda params, tokens, *, valid=None: embed(params, tokens),
    )
    config = models.TransformerConfig(
        vocab_size=VOCABULARY, max_length=LENGTH, width=WIDTH, num_layers=1, num_heads=1
    )
    rng = np.random.default_rng(0)
    shapes = {"embedding": (VOCABULARY, WIDTH), "out": (WIDTH, VOCABULARY)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    return Pretrained(config, params, None, lm, None)  # type: ignore[arg-type]


def rows() -> Training:
    rng = np.random.default_rng(1)
    encoded, num_answers = [], max(map(len, ANSWERS))
    ranks, weight = (
        np.full((len(ANSWERS), num_answers, 3), -1),
        np.zeros((len(ANSWERS), num_answers)),
    )
    for n, answers in enumerate(ANSWERS):
        texts = [rng.integers(1, VOCABULARY, rng.integers(2, 7)) for _ in answers[0][0]]
        prompt = rng.integers(1, VOCABULARY, rng.integers(1, 5))
        row = Row("", (), answers[0][0], source=f"f:{n}")
        encoded.append(Encoded(prompt, tuple(texts), answers[0][0], 1.0, None, row))
        for a, (order, count) in enumerate(answers):
            ranks[n, a, : len(order)], weight[n, a] = order, count
    return Training(encoded, ranks, weight, data.Report(read=len(encoded)))


def samples(num: int) -> Sampled:
    rng = np.random.default_rng(2)
    valid = np.arange(LENGTH) < rng.integers(4, LENGTH + 1, num)[:, None]
    mask = valid & (np.arange(LENGTH) >= 2)
    return Sampled(rng.integers(1, VOCABULARY, (num, LENGTH)), mask, valid, np.zeros(num))


def update(config: Config, cut: list[list[int]]) -> tuple:
    """Returns loss, gradient and metrics of an update cut into batches; rows -1 fill them up."""
    config = dataclasses.replace(config, gradient_accumulation_steps=len(cut))
    model, train = bigrams(), rows()
    reference = np.random.default_rng(3).normal(-9, 2, (len(ANSWERS), 3)).astype(np.float32)
    head = jnp.arange(1.0, 1.0 + WIDTH) if config.objective == "reward_model" else None
    params = jax.tree.map(lambda leaf: 1.1 * leaf, model.params)
    frozen = Frozen(model.params, samples(9))
    objective = jax.jit(jax.value_and_grad(learning.make_objective(config, model), has_aux=True))
    parts = [data.collate(train.encoded, part, length=LENGTH, num_slots=3) for part in cut]
    total = sum(batches.answer_weights(batch, train).sum() for batch in parts)
    found = [
        objective(
            Trainable(params, head),
            frozen,
            jax.random.key(5),
            batches.step_batch(batch, reference, train, total, part),
        )
        for part, batch in enumerate(parts)
    ]
    add = lambda *leaves: sum(leaves)
    loss, gradient = (
        jax.tree.map(add, *column) for column in zip(*((v[0], g) for v, g in found), strict=True)
    )
    metrics = [v[1] | {"loss": v[0], "grad_norm": 0.0} for v, _ in found]
    means = history.means(config, history.add_update({}, metrics, total))
    return loss, gradient, means


WHOLE = [list(range(len(ANSWERS)))]
CUT = [[6, -1, -1], [0, 1, 2], [3, 5, 4]]


@functools.cache
def whole_update(number: int) -> tuple:
    return update(config_of(number), WHOLE)


def config_of(number: int) -> Config:
    return Config(beta=0.3, kl_batch_size=9, **VARIANTS[number])  # type: ignore[arg-type]


every_variant = pytest.mark.parametrize(
    "number", range(len(VARIANTS)), ids=["-".join(map(str, v.values())) for v in VARIANTS]
)


@pytest.mark.slow
@every_variant
def test_an_update_of_several_batches_is_that_of_one(float64: None, number: int):
    """Losses, gradients and metrics agree, with partly filled batches, votes, ties and rankings."""
    one, several = whole_update(number), update(config_of(number), CUT)
    for a, b in zip(jax.tree.leaves(several), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-9)
    assert several[2].keys() == one[2].keys()
    np.testing.assert_allclose(one[2]["loss"], one[0], rtol=1e-6)


@pytest.mark.slow
@every_variant
def test_the_loss_of_an_update_is_the_weighted_mean_over_its_answers(float64: None, number: int):
    """Each answer is scored alone without padding; the mean along the samples is added."""
    config = config_of(number)
    model, train = bigrams(), rows()
    reference = np.random.default_rng(3).normal(-9, 2, (len(ANSWERS), 3)).astype(np.float32)
    head = jnp.arange(1.0, 1.0 + WIDTH) if config.objective == "reward_model" else None
    log_law = lambda params: jax.nn.log_softmax(params["embedding"] @ params["out"], axis=-1)

    def plain(trainable: Trainable) -> jax.Array:
        law, total, weights = log_law(trainable.model), 0.0, 0.0
        for n, (row, answers) in enumerate(zip(train.encoded, ANSWERS, strict=True)):
            last = lambda ids, p=row.prompt: np.concatenate([p[-1:], ids])
            sums = [jnp.sum(law[last(ids)[:-1], ids]) for ids in row.completions]
            scores = learning.Scores(
                jnp.stack(sums)[None],
                jnp.asarray([[len(ids) for ids in row.completions]]),
                jnp.asarray(reference[n : n + 1, : len(sums)]),
                jnp.stack(
                    [
                        jnp.zeros(())
                        if head is None
                        else trainable.model["embedding"][ids[-1]] @ trainable.head
                        for ids in row.completions
                    ]
                )[None],
            )
            for order, weight in answers:
                ranks = jnp.asarray([order])
                loss = OBJECTIVES[config.objective].losses(config, scores, ranks)[0]
                total, weights = total + weight * loss, weights + weight
        loss = total / weights
        if config.kl_weight:
            ref, drawn = log_law(model.params), samples(9)
            each = jnp.sum(jnp.exp(ref) * (ref - law), axis=-1)
            counts = np.bincount(drawn.tokens[:, :-1][drawn.mask[:, 1:]], minlength=VOCABULARY)
            loss += config.kl_weight * jnp.sum(counts * each) / 9
        return loss

    params = jax.tree.map(lambda leaf: 1.1 * leaf, model.params)
    expected, slope = jax.jit(jax.value_and_grad(plain))(Trainable(params, head))
    loss, gradient, _ = whole_update(number)
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)


def test_rows_of_metrics_are_means_over_all_rows_of_their_updates():
    """Means over rows count by weight, others once per update; means over nothing are absent."""
    updates = [
        (
            [{"a": Mean(0.5, 0.25), "b": Mean(0.0, 0.0)}, {"a": Mean(3.0, 0.75), "b": Mean(0, 0)}],
            8.0,
        ),
        ([{"a": Mean(1.0, 1.0), "b": Mean(0.0, 0.0)}] * 1, 2.0),
    ]
    sums: history.Sums = {}
    for number, (metrics, weight) in enumerate(updates):
        norms = [{"loss": np.nan, "grad_norm": 10.0 * number + n} for n in range(len(metrics))]
        kl = [{"kl": 0.5, "objective": Mean(0.1, 1.0 / len(metrics))} for _ in metrics]
        joined = [a | b | c for a, b, c in zip(metrics, norms, kl, strict=True)]
        sums = history.add_update(sums, joined, weight)
    found = history.means(Config(kl_weight=2.0), sums)
    assert found == pytest.approx(
        {
            "a": (8 * 3.5 + 2 * 1.0) / 10,
            "grad_norm": (1.0 + 10.0) / 2,  # of the update's last batch: the whole gradient
            "kl": (1.0 + 0.5) / 2,
            "loss": (8 * 0.2 + 2 * 0.1) / 10 + 2.0 * 0.75,
        }
    )
