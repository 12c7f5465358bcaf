import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

from shatter.training import learner

# Members differ by their start; they share the frozen part and the batch.
STARTS = np.random.default_rng(0).normal(size=(3, 4))
FROZEN = np.random.default_rng(1).normal(size=4)
BATCHES = np.random.default_rng(2).normal(size=(5, 6, 4))


def objective(params, frozen, key, batch):
    loss = jnp.mean(jnp.log(jnp.cosh(batch @ params - 1.0))) + 0.1 * jnp.sum((params - frozen) ** 2)
    return loss, {} if key is None else {"noise": jax.random.normal(key)}


def optimizer():
    # Clipping by the global norm would couple members that share an optimiser.
    return optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(0.05, weight_decay=0.01))


def by_hand(start):
    """The parameters after every batch, by optax alone."""
    gradient = jax.grad(lambda params, batch: objective(params, FROZEN, None, batch)[0])

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer().update(gradient(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (start, optimizer().init(start)), jnp.asarray(BATCHES))[1]


@jax.jit
def runs(starts, keys):
    """The last state, states before and metrics of all steps, of members together and in turn."""
    member = learner(objective, optimizer())
    lifted = jax.vmap(member.step, in_axes=(0, None, None))

    def scan(step, state):
        def keep(state, batch):
            after, metrics = step(state, FROZEN, batch)
            return after, (state, metrics)

        last, history = jax.lax.scan(keep, state, jnp.asarray(BATCHES))
        return last, *history

    together = scan(lifted, jax.vmap(member.init)(starts, keys))
    in_turn = jax.lax.map(lambda m: scan(member.step, member.init(*m)), (starts, keys))
    return together, in_turn, jax.vmap(by_hand)(starts)


@pytest.mark.slow
def test_a_learner_is_an_optax_loop_and_members_by_vmap_are_members_looped(float64):
    keys = jax.random.split(jax.random.key(0), 3)
    (last, states, metrics), in_turn, expected = runs(jnp.asarray(STARTS), keys)
    np.testing.assert_allclose(states.params[1:], np.swapaxes(expected, 0, 1)[:-1], rtol=1e-12)
    np.testing.assert_allclose(last.params, expected[:, -1], rtol=1e-12)
    np.testing.assert_array_equal(last.step, [5, 5, 5])
    np.testing.assert_allclose(last.params, in_turn[0].params, rtol=1e-12)
    np.testing.assert_allclose(states.params, np.swapaxes(in_turn[1].params, 0, 1), rtol=1e-12)
    for name, values in in_turn[2].items():
        np.testing.assert_allclose(metrics[name], values.T, rtol=1e-12, err_msg=name)


def test_the_metrics_of_a_step_and_its_key(float64):
    keys = jax.random.split(jax.random.key(0), 3)
    _, states, metrics = runs(jnp.asarray(STARTS), keys)[0]
    assert {*metrics} == {"loss", "grad_norm", "noise"}

    def by_hand(key, params):  # of one member
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(5))
        value_and_gradient = jax.value_and_grad(objective, has_aux=True)
        step = jax.vmap(lambda params, key, batch: value_and_gradient(params, FROZEN, key, batch))
        (loss, aux), gradient = step(params, keys, jnp.asarray(BATCHES))
        return {"loss": loss, "grad_norm": jnp.linalg.norm(gradient, axis=1), **aux}

    expected = jax.jit(jax.vmap(by_hand, (0, 1)))(keys, states.params)
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name].T, values, rtol=1e-12, err_msg=name)
    assert len(np.unique(metrics["noise"])) == 15  # another key in every step of every member


def test_a_bad_loss_is_found_on_demand():
    def objective(params, frozen, key, batch):
        del frozen, key
        return jnp.sum(jnp.sqrt(params) * batch), {}

    member = learner(objective, optax.sgd(0.1))
    checked = jax.jit(checkify.checkify(member.step))

    def message(params, batch):
        state = member.init(jnp.array(params), jax.random.key(0))
        return checked(state, None, jnp.array(batch))[0].get()

    assert message([1.0, 4.0], [1.0, 1.0]) is None
    assert "the loss is nan" in message([1.0, -4.0], [1.0, 1.0])
    assert "the gradient's norm is inf" in message([1.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("num_batches", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_an_update_of_several_batches_is_that_of_one(float64, num_batches):
    """Of any weighted mean, of what all batches draw by their key, and with clipping and AdamW."""
    rows, weights = np.array(BATCHES[:2].reshape(12, 4)), np.linspace(0.0, 3.0, 12)

    def weighted(params, frozen, key, batch):
        rows, shares = batch
        each = jnp.log(jnp.cosh(rows @ params - frozen))
        draw = jax.random.normal(key, params.shape)  # the same in all batches of an update
        loss = jnp.sum(shares * each) + jnp.sum(shares) * jnp.vdot(draw, params)
        return loss, {"draw": draw[0]}

    def run(num_batches):
        member = learner(weighted, optimizer(), num_batches=num_batches)
        step, found = jax.jit(member.step), []
        state = member.init(jnp.asarray(STARTS[0]), jax.random.key(3))
        for _ in range(3):  # updates
            total = weights.sum()
            for part in np.array_split(np.arange(12), num_batches):
                state, metrics = step(state, 0.3, (rows[part], weights[part] / total))
                found.append(metrics)
        return state, jax.tree.map(lambda *leaves: np.asarray(leaves), *found)

    (one, expected), (state, metrics) = run(1), run(num_batches)
    np.testing.assert_allclose(state.params, one.params, rtol=1e-12)
    assert state.step == one.step == 3
    np.testing.assert_allclose(
        metrics["grad_norm"][num_batches - 1 :: num_batches], expected["grad_norm"]
    )
    np.testing.assert_allclose(metrics["loss"].reshape(3, -1).sum(axis=1), expected["loss"])
    np.testing.assert_array_equal(metrics["draw"][::num_batches], expected["draw"])
    for leaf in jax.tree.leaves(state.opt_state.gradient):
        np.testing.assert_array_equal(leaf, 0.0)


def test_parameters_stand_still_until_the_last_batch_of_an_update():
    member = learner(lambda params, *_: (jnp.sum(params**2), {}), optax.sgd(0.1), num_batches=3)
    state = member.init(jnp.array([1.0, -2.0]), jax.random.key(0))
    step, seen = jax.jit(member.step), []
    for _ in range(4):
        state, _ = step(state, None, None)
        seen.append((state.params.tolist(), int(state.step), int(state.opt_state.num_batches)))
    still = [1.0, -2.0]
    after = np.float32([1.0 - 0.6, -2.0 + 1.2]).tolist()
    assert [s[1:] for s in seen] == [(0, 1), (0, 2), (1, 0), (1, 1)]
    assert seen[0][0] == seen[1][0] == still
    np.testing.assert_allclose(seen[2][0], after, rtol=1e-6)
    with pytest.raises(ValueError, match="a learner needs num_batches >= 1, found 0"):
        learner(objective, optax.sgd(0.1), num_batches=0)
