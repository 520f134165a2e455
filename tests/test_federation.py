"""Rounds on emulated devices against a plain Python loop over nodes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protojax import attacks, distillation, training
from protojax.base import Batch, ModelOutput, Prototypes
from protojax.data import batches
from protojax.distillation import mean_gradient, prototype_constraint
from protojax.federated import aggregation, federation, gossip, nodes
from tests.test_aggregation import flat, reference

NODES, STEPS, ROWS, LENGTH = 8, 3, 4, 5
WORDS, DIM, CLASSES = 11, 6, 3
ROWS_OF_NODES = np.array([40, 10, 30, 20, 50, 25, 35, 15])

RULES = {
    name: functools.partial(rule, num_byzantine=2)
    if "krum" in name or "trimmed" in name or "mixed" in name
    else rule
    for name, rule in aggregation.AGGREGATORS.items()
}


# One of the rules that mix first will do: mixing is the same code in all.
SHARDED = [*(name for name in RULES if "mixed" not in name), "mixed_median"]


def apply(params, batch, *, key=None, hidden_states=False):
    """A bag of words with one hidden layer."""
    # A product: the gradient of a gather is a loop, which takes longer to compile.
    first = jax.nn.one_hot(batch.input_ids, WORDS) @ params["embed"]
    second = jnp.tanh(first @ params["hidden"])
    mask = batch.attention_mask[..., None]
    pooled = jnp.sum(second * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
    return ModelOutput(pooled @ params["head"], (first, second))


def make_params(rng):
    def draw(*shape):
        return np.float32(rng.normal(size=shape))

    model = {
        "embed": draw(WORDS, DIM),
        "hidden": draw(DIM, DIM),
        "head": draw(DIM, CLASSES),
    }
    return {"model": model}


def make_prototypes(rng):
    return Prototypes(
        vectors=np.float32(rng.normal(size=(1, 6, DIM))),
        labels=np.arange(6, dtype=np.int32)[None] % CLASSES,
        counts=np.ones((1, 6), np.float32),
    )


def make_batches(seed=0, num_steps=STEPS):
    """Batches of all nodes; node 1 has none left at the last step."""
    rng = np.random.default_rng(seed)
    shape = (NODES, num_steps, ROWS)
    where = rng.random(shape) < 0.9
    where[1, -1] = False
    return Batch(
        input_ids=rng.integers(0, WORDS, (*shape, LENGTH)),
        attention_mask=(rng.random((*shape, LENGTH)) < 0.8).astype(np.int32),
        token_type_ids=np.zeros((*shape, LENGTH), np.int32),
        labels=rng.integers(0, CLASSES, shape),
        where=where,
        teacher_logits=rng.normal(size=(*shape, CLASSES)).astype(np.float32),
        assigned_class=rng.integers(0, CLASSES, shape),
    )


def clipped_gradient(loss_fn, norm=1.0):
    """Each row's gradient clipped, as DP-SGD does before its noise."""

    def grad_fn(params, batch, prototypes, step, key):
        def row_loss(params, row):
            one = jax.tree.map(lambda leaf: leaf[None], row)
            return loss_fn(params, one, prototypes, step, key)[0][0]

        losses, grads = jax.vmap(jax.value_and_grad(row_loss), (None, 0))(params, batch)
        norms = jax.vmap(optax.tree.norm)(grads)
        scales = jnp.where(batch.where, jnp.minimum(1, norm / norms), 0) / ROWS
        clipped = jax.tree.map(lambda leaf: jnp.tensordot(scales, leaf, 1), grads)
        return clipped, {"loss": jnp.mean(losses)}

    return grad_fn


def make_grad_fn(kind):
    loss_fn = distillation.distillation_loss(apply, temperature=2.0)
    if kind == "assigned":
        loss_fn = prototype_constraint(
            loss_fn,
            weight=optax.constant_schedule(0.5),
            margin=optax.constant_schedule(0.1),
        )
    return clipped_gradient(loss_fn) if kind == "clipped" else mean_gradient(loss_fn)


OPTIMIZER = training.adamw(learning_rate=0.01)


def make_states(seed=0, *, alike=True):
    rng = np.random.default_rng(seed)
    params = make_params(rng)
    held = make_prototypes(rng)
    return [
        training.init_state(
            params if alike else make_params(rng),
            OPTIMIZER,
            num_steps=STEPS + node,
            seed=node,
            prototypes=held,
        )
        for node in range(NODES)
    ]


@functools.cache
def expected_end(kind):
    """Every node by itself, batch after batch."""
    step = jax.jit(training.make_step(make_grad_fn(kind), OPTIMIZER))
    states, stacked, ends = make_states(), make_batches(), []
    for node, state in enumerate(states):
        for turn in range(STEPS):
            batch = jax.tree.map(lambda leaf: leaf[node, turn], stacked)  # noqa: B023
            state, _ = step(state, batch)
        ends.append(state)
    return nodes.stack(jax.device_get(ends))


@functools.cache
def expected_merge(kind, name):
    """The rule over the updates of that loop, by loops too where they are exact."""
    params = expected_end(kind).params
    origin = jax.device_get(make_states()[0].params)
    updates = jax.tree.map(np.subtract, params, origin)
    weights = np.float32(ROWS_OF_NODES)
    if "geometric" in name:
        update = jax.jit(RULES[name])(updates, weights=weights)
    else:
        rows = np.float64(flat(updates))
        update = split(reference(name, rows, weights), like=origin)
    return jax.tree.map(np.add, origin, jax.device_get(update))


def split(row, like):
    """The leaves whose values stand side by side in a row."""
    leaves, tree = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = zip(np.split(row, ends[:-1]), leaves, strict=True)
    return tree.unflatten([part.reshape(leaf.shape) for part, leaf in parts])


@functools.cache
def compiled_merge(name, mesh):
    """The end of a round, compiled once for all kinds of steps."""
    return federation.make_merge(
        federation.merge_at_server(RULES[name]), mesh, weights=ROWS_OF_NODES
    )


def live_with_their_nodes(tree, mesh):
    return all(
        leaf.sharding.is_equivalent_to(nodes.sharding(mesh), leaf.ndim)
        for leaf in jax.tree.leaves(tree)
    )


def close(found, expected, atol=1e-5):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol),
        jax.device_get(found),
        jax.device_get(expected),
    )


# Where a step is computed has nothing to do with its loss.
@pytest.mark.parametrize(
    ("kind", "num_devices"),
    [("plain", 1), ("plain", 2), ("plain", 8), ("assigned", 8), ("clipped", 8)],
)
def test_a_sharded_round_equals_a_loop_over_nodes(kind, num_devices):
    mesh = nodes.make_mesh(NODES, jax.devices()[:num_devices])
    step = training.make_step(make_grad_fn(kind), OPTIMIZER)
    fed = federation.init_federation(make_states(), mesh, server=True)
    trained, metrics = federation.make_local(step, mesh)(
        fed.nodes, nodes.shard(make_batches(), mesh)
    )
    close(trained, expected_end(kind))
    assert metrics["loss"].shape == (NODES, STEPS)
    assert live_with_their_nodes(trained, mesh)
    # Elsewhere too, a sum and an order of all nodes.
    every = (kind, num_devices) == ("plain", 8)
    for name in SHARDED if every else ("mean", "median"):
        end = compiled_merge(name, mesh)
        # The merge consumes its argument, and all rules start from the same.
        merged = end(jax.tree.map(jnp.copy, fed._replace(nodes=trained)))
        wanted = expected_merge(kind, name)
        close(merged.origin, wanted)
        for node in (0, NODES - 1):
            close(nodes.unstack(merged.nodes.params, node), wanted)
        assert live_with_their_nodes(merged.nodes, mesh)
        for leaf in jax.tree.leaves(merged.origin):
            assert leaf.sharding.is_fully_replicated
        assert int(merged.round) == 1


def test_a_node_with_a_seed_of_its_own_has_the_same_order_beside_anyone():
    settings = {"num_rounds": 2, "epochs": 2, "batch_size": 4, "buckets": (4, 8)}
    lengths = np.random.default_rng(0).integers(2, 9, 30)

    def batches_of(node, *others, seed):
        turns = federation.plan_rounds(
            others, **settings, steps_per_dispatch=2, seed=seed
        )
        return [
            {tuple(row) for item in turn for row in item.rows[node] if row[0] >= 0}
            for turn in turns
        ]

    second = batches_of(1, lengths[:20], lengths, seed=(3, 5))
    assert second == batches_of(0, lengths, lengths[:7], seed=(5, 0))
    assert second != batches_of(1, lengths[:20], lengths, seed=(3, 6))
    with pytest.raises(ValueError, match="zip"):
        batches_of(0, lengths, lengths, seed=(3,))


@pytest.mark.parametrize("at_once", [2, 8])
def test_nodes_computed_together_end_alike(at_once):
    mesh = nodes.make_mesh(NODES, jax.devices()[:1])
    step = training.make_step(make_grad_fn("assigned"), OPTIMIZER)
    fed = federation.init_federation(make_states(), mesh, server=True)
    local = federation.make_local(step, mesh, at_once=at_once)
    end, _ = local(fed.nodes, nodes.shard(make_batches(), mesh))
    close(end, expected_end("assigned"))


# On one device a robust rule is what it is compared with.
@pytest.mark.parametrize(
    ("rule", "num_devices"), [(None, 1), (None, 8), ("trimmed_mean", 8)]
)
def test_gossip_equals_a_loop_over_nodes(rule, num_devices):
    mesh = nodes.make_mesh(NODES, jax.devices()[:num_devices])
    mixing = gossip.exponential(NODES)
    rule = rule and functools.partial(aggregation.trimmed_mean, num_byzantine=1)
    fed = federation.init_federation(make_states(alike=False), mesh, server=False)
    params = jax.device_get(fed.nodes.params)
    end = federation.make_merge(
        federation.merge_by_gossip(mixing, rule, mesh=mesh),
        mesh,
        weights=ROWS_OF_NODES,
    )
    found = end(fed)
    expected = (
        gossip.mix(params, mixing)
        if rule is None
        else gossip.robust_mix(params, mixing, rule)
    )
    close(found.nodes.params, expected)
    close(found.origin, expected)
    assert live_with_their_nodes((found.nodes, found.origin), mesh)


def test_gossip_agrees_in_the_end():
    mesh = nodes.make_mesh(NODES)
    fed = federation.init_federation(make_states(alike=False), mesh, server=False)
    mean = jax.tree.map(lambda leaf: leaf.mean(0), jax.device_get(fed.nodes.params))
    end = federation.make_merge(
        federation.merge_by_gossip(gossip.ring(NODES)), mesh, weights=ROWS_OF_NODES
    )
    for _ in range(100):
        # Emulated devices that run ahead of each other starve their collectives.
        fed = jax.block_until_ready(end(fed))
    for node in range(NODES):
        close(nodes.unstack(fed.nodes.params, node), mean)
    assert int(fed.round) == 100


def test_nodes_that_keep_to_themselves_keep_what_they_have():
    mesh = nodes.make_mesh(NODES)
    fed = federation.init_federation(make_states(alike=False), mesh, server=False)
    params = jax.device_get(fed.nodes.params)
    end = federation.make_merge(federation.keep_local(), mesh, weights=ROWS_OF_NODES)
    jax.tree.map(np.testing.assert_array_equal, end(fed).nodes.params, params)


@pytest.mark.parametrize("topology", ["server", "gossip"])
def test_hostile_nodes_send_something_else(topology):
    mesh = nodes.make_mesh(NODES)
    hostile = np.arange(NODES) >= 6
    states = make_states()
    fed = federation.init_federation(states, mesh, server=topology == "server")
    moved = jax.tree.map(lambda leaf: leaf + 0.1, fed.nodes.params)
    fed = fed._replace(nodes=fed.nodes._replace(params=moved))
    merge = (
        federation.merge_at_server(aggregation.mean)
        if topology == "server"
        else federation.merge_by_gossip(gossip.complete(NODES))
    )
    end = federation.make_merge(
        merge,
        mesh,
        weights=np.ones(NODES),
        attack=functools.partial(attacks.UPDATE_ATTACKS["flip_sign"], factor=3.0),
        hostile=hostile,
    )
    found = end(fed)
    # Six of eight move by 0.1, two by −0.3: nobody moves.
    close(nodes.unstack(found.nodes.params, 0), states[0].params)


def test_noise_differs_from_round_to_round():
    mesh = nodes.make_mesh(NODES)
    end = federation.make_merge(
        federation.merge_at_server(aggregation.mean),
        mesh,
        weights=np.ones(NODES),
        attack=attacks.UPDATE_ATTACKS["add_noise"],
        hostile=np.arange(NODES) == 0,
    )
    fed = federation.init_federation(make_states(), mesh, server=True)
    origins = [jax.device_get(fed.origin)]
    for _ in range(2):
        fed = end(fed)
        origins.append(jax.device_get(fed.origin))
    moves = [
        jax.tree.map(np.subtract, after, before)["model"]["head"]
        for before, after in itertools.pairwise(origins)
    ]
    assert np.abs(moves[0] - moves[1]).min() > 0


@pytest.mark.parametrize(
    ("attack", "hostile"),
    [
        (None, np.arange(NODES) == 0),
        (attacks.UPDATE_ATTACKS["scale"], None),
        (attacks.UPDATE_ATTACKS["scale"], np.zeros(NODES, bool)),
    ],
)
def test_an_attack_needs_attackers(attack, hostile):
    with pytest.raises(ValueError, match="hostile some nodes"):
        federation.make_merge(
            federation.keep_local(),
            nodes.make_mesh(NODES),
            weights=np.ones(NODES),
            attack=attack,
            hostile=hostile,
        )


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_weights_of_nodes_are_weights(weight):
    with pytest.raises(ValueError, match="weights >= 0 and finite"):
        federation.make_merge(
            federation.keep_local(),
            nodes.make_mesh(NODES),
            weights=np.array([weight, *[1.0] * (NODES - 1)]),
        )


def test_a_server_wants_one_start():
    with pytest.raises(ValueError, match="alike on all nodes"):
        federation.init_federation(
            make_states(alike=False), nodes.make_mesh(NODES), server=True
        )


def test_rounds_after_the_first_compile_nothing():
    mesh = nodes.make_mesh(NODES)
    traced = []
    step = training.make_step(make_grad_fn("plain"), OPTIMIZER)
    local = federation.make_local(
        step, mesh, on_trace=lambda batch: traced.append(batch.input_ids.shape)
    )
    end = federation.make_merge(
        federation.merge_at_server(aggregation.coordinate_median),
        mesh,
        weights=ROWS_OF_NODES,
        on_trace=lambda: traced.append("merge"),
    )
    fed = federation.init_federation(make_states(), mesh, server=True)
    for turn in range(3):
        stacked = nodes.shard(make_batches(turn), mesh)
        fed = end(fed._replace(nodes=local(fed.nodes, stacked)[0]))
    assert traced == [(NODES, STEPS, ROWS, LENGTH), "merge"]


def plan(lengths, **changes):
    settings = {
        "num_rounds": 3,
        "epochs": 2,
        "batch_size": 4,
        "buckets": (8, 16),
        "steps_per_dispatch": 2,
        "seed": 0,
    }
    return federation.plan_rounds(lengths, **{**settings, **changes})


def test_plans_drop_no_row_and_keep_step():
    rng = np.random.default_rng(0)
    lengths = [rng.integers(2, 17, rows) for rows in (37, 12, 90)]
    rounds = plan(lengths)
    assert len(rounds) == 3
    seen = [np.zeros(len(tokens), int) for tokens in lengths]
    steps = np.zeros((3, 3), int)
    for turn, dispatches in enumerate(rounds):
        for length, rows in dispatches:
            assert rows.shape == (3, 2, 4)
            for node, own in enumerate(rows):
                found = own[own >= 0]
                assert (lengths[node][found] <= length).all()
                np.add.at(seen[node], found, 1)
                steps[turn, node] += (own >= 0).any(axis=1).sum()
    for times in seen:
        assert (times == 2).all()
    # Each node has done its share of its own steps by the end of each round.
    shares = steps.cumsum(0) / steps.sum(0)
    np.testing.assert_allclose(shares[:2].T, [[1 / 3, 2 / 3]] * 3, atol=0.1)


def test_nodes_of_a_plan_have_orders_of_their_own():
    first, second = (
        np.concatenate(
            [
                rows[node].ravel()
                for turn in plan([np.full(16, 3)] * 2)
                for _, rows in turn
            ]
        )
        for node in (0, 1)
    )
    assert (first != second).any()


def test_one_node_takes_the_plan_of_one_machine():
    lengths = np.random.default_rng(1).integers(2, 17, 50)
    rows = np.concatenate(
        [item.rows.reshape(-1, 4) for turn in plan([lengths]) for item in turn]
    )
    alone = np.concatenate(
        [
            item.rows.reshape(-1, 4)
            for epoch in range(2)
            for item in batches.plan_epoch(
                lengths,
                batch_size=4,
                buckets=(8, 16),
                steps_per_dispatch=1,
                seed=0,
                epoch=epoch,
            )
        ]
    )
    real = rows[(rows >= 0).any(axis=1)]
    assert sorted(map(tuple, real)) == sorted(map(tuple, alone))


def test_more_rounds_than_batches_are_refused():
    with pytest.raises(ValueError, match=r"num_rounds <= 2, the batches of node 1"):
        plan([np.full(40, 3), np.full(4, 3)])
