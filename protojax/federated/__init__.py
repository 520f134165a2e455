"""Federated training with nodes as an array axis: rounds, merges and messages.

Checkpoints of nodes are in `protojax.federated.node_checkpoint`, which is not imported
here because importing Orbax is slow.
"""

from protojax.federated.aggregation import AGGREGATORS
from protojax.federated.communication import PRECISIONS, decode, encode
from protojax.federated.federation import (
    Federation,
    init_federation,
    keep_local,
    make_local,
    make_merge,
    merge_at_server,
    merge_by_gossip,
    plan_rounds,
)
from protojax.federated.gossip import TOPOLOGIES
from protojax.federated.nodes import make_mesh, shard, stack, unstack

__all__ = [
    "AGGREGATORS",
    "PRECISIONS",
    "TOPOLOGIES",
    "Federation",
    "decode",
    "encode",
    "init_federation",
    "keep_local",
    "make_local",
    "make_merge",
    "make_mesh",
    "merge_at_server",
    "merge_by_gossip",
    "plan_rounds",
    "shard",
    "stack",
    "unstack",
]
