"""Settings of a federation: its nodes, their merges and their messages."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from protojax import attacks, validate
from protojax.data import partition
from protojax.federated import aggregation, communication, gossip
from protojax.validate import options


@dataclasses.dataclass(frozen=True)
class Federation:
    """The settings of one federation, in which the arm `ARM@NAME` runs.

    Attributes:
        nodes: the number of nodes.
        rounds: the number of merges, over which the student's epochs are divided.
        partition: a name in `partition.PARTITIONS`.
        partition_args: such as {"alpha": 0.3} of "dirichlet".
        topology: "server", "local", a name in `gossip.TOPOLOGIES`, or "given".
        mixing: the rows of the matrix if the topology is "given".
        aggregator: a name in `aggregation.AGGREGATORS`.
        aggregator_args: its options.
        hostile: the number of hostile nodes, which hold all the poison and do not
            defend.
        update_attack: the hostile nodes' attack on their updates, a name in
            `attacks.UPDATE_ATTACKS`, or "".
        update_attack_args: its options.
        prototypes: "server": computed once and sent to the nodes; "local": computed by
            each node, then merged.
        prototype_attack: the hostile nodes' attack on their prototypes, a name in
            `attacks.PROTOTYPE_ATTACKS`, or "".
        merge_prototypes_every: rounds between two merges of local prototypes.
        prototype_decay: the weight of a merged prototype when a node adapts it to its
            own references.
        prototype_precision: the precision in which prototypes are sent.
        trusted_model: whether the "references" or the trusted model's "weights" are
            sent to the nodes.
        nodes_at_once: nodes per device that are computed together by vmap.
    """

    nodes: int = 4
    rounds: int = 3
    partition: str = "iid"
    partition_args: Mapping[str, Any] = options()
    topology: str = "server"
    mixing: tuple[tuple[float, ...], ...] = ()
    aggregator: str = "mean"
    aggregator_args: Mapping[str, Any] = options()
    hostile: int = 0
    update_attack: str = ""
    update_attack_args: Mapping[str, Any] = options()
    prototypes: str = "server"
    prototype_attack: str = ""
    merge_prototypes_every: int = 1
    prototype_decay: float = 0.9
    prototype_precision: str = "float32"
    trusted_model: str = "references"
    nodes_at_once: int = 1

    def __post_init__(self):
        rows = tuple(tuple(row) for row in self.mixing)
        object.__setattr__(self, "mixing", rows)
        for field in ("nodes", "rounds", "merge_prototypes_every", "nodes_at_once"):
            validate.positive(**{field: getattr(self, field)})
        bound = f"in 0..{self.nodes - 1}"
        validate.require(0 <= self.hostile < self.nodes, "hostile", self.hostile, bound)
        validate.fraction(prototype_decay=self.prototype_decay)
        for field, known in (
            ("partition", partition.PARTITIONS),
            ("topology", ("server", "local", *gossip.TOPOLOGIES, "given")),
            ("aggregator", aggregation.AGGREGATORS),
            ("prototypes", ("server", "local")),
            ("prototype_precision", communication.PRECISIONS),
            ("trusted_model", ("references", "weights")),
            ("update_attack", ("", *attacks.UPDATE_ATTACKS)),
            ("prototype_attack", ("", *attacks.PROTOTYPE_ATTACKS)),
        ):
            validate.one_of(known, **{field: getattr(self, field)})
        for field in ("update_attack", "prototype_attack"):
            value = getattr(self, field)
            allowed = not value or self.hostile > 0
            # An attack without attackers would be reported as one that was withstood.
            validate.require(allowed, field, value, "'' without hostile")
