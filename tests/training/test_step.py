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
    return loss, {"noise": jax.random.normal(key)}


def optimizer():
    # Clipping by the global norm would couple members that share an optimiser.
    return optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(0.05, weight_decay=0.01))


def by_hand(start):
    """The parameters after every batch, by optax alone."""
    gradient = jax.grad(
        lambda params, batch: objective(params, FROZEN, jax.random.key(0), batch)[0]
    )

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer().update(gradient(params, batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (start, optimizer().init(start)), BATCHES)[1]


def test_a_learner_is_an_optax_loop_and_members_by_vmap_are_members_looped(float64):
    member = learner(objective, optimizer())
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(member.init)(jnp.asarray(STARTS), keys)
    lifted = jax.jit(jax.vmap(member.step, in_axes=(0, None, None)))
    single = jax.jit(member.step)
    expected = np.asarray(jax.jit(jax.vmap(by_hand))(STARTS))
    loss_and_gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    for t, batch in enumerate(BATCHES):
        before = together
        together, metrics = lifted(before, FROZEN, batch)
        np.testing.assert_allclose(together.params, expected[:, t], rtol=1e-12)
        for m in range(3):
            alone, alone_metrics = single(
                jax.tree.map(lambda leaf, m=m: leaf[m], before), FROZEN, batch
            )
            np.testing.assert_allclose(together.params[m], alone.params, rtol=1e-13)
            for name, value in alone_metrics.items():
                np.testing.assert_allclose(metrics[name][m], value, rtol=1e-12, err_msg=name)
            key = jax.random.fold_in(before.key[m], t)  # step t of this member
            (loss, aux), gradient = loss_and_gradient(before.params[m], FROZEN, key, batch)
            norm = np.linalg.norm(gradient)
            for name, value in {**aux, "loss": loss, "grad_norm": norm}.items():
                np.testing.assert_allclose(metrics[name][m], value, rtol=1e-12, err_msg=name)
    np.testing.assert_array_equal(together.step, [5, 5, 5])
    assert {*metrics} == {"loss", "grad_norm", "noise"}
    assert len({*np.asarray(metrics["noise"]).tolist()}) == 3  # each member has its own key


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
