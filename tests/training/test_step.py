import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify

from shatter.training import learner

# Members differ by their start; the frozen part and the batch they share.
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
