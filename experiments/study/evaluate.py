"""Evaluation: the rows of the results, from students on clean and triggered text."""

import functools
from typing import Any

import numpy as np

from experiments import runtime
from experiments.runtime import Context
from experiments.settings import Settings
from experiments.study import students
from experiments.study.grid import Job
from experiments.world import scenarios, tasks
from protojax import attacks, evals, models
from protojax.data import partition
from protojax.training import predict


def evaluate(context: Context, job: Job) -> dict[str, Any]:
    """One row of the results: the metrics of students on clean and triggered text.

    If each node has its own student, the metrics are means over the honest nodes.
    """
    config = context.config
    found = students.load(context, job)
    facts = students.facts_of(context.workdir, job)
    if len(found) > 1:
        # Hostile nodes come last.
        found = found[: len(found) - facts["hostile_nodes"]]
    task, splits = scenarios.task_data(config, job.scenario.task, job.scenario.seed)
    predicted = _predict(config, task, found, splits.test)
    metrics = {
        name: float(
            np.mean([tasks.METRICS[name](splits.test.labels, p) for p in predicted])
        )
        for name in task.metrics
    }
    row = {
        "task": job.scenario.task,
        "attack": job.scenario.attack,
        "arm": job.arm,
        "seed": job.scenario.seed,
        "clean_metric": metrics[task.metrics[0]],
        "metric_name": task.metrics[0],
        "metrics": metrics,
        "test_rows": len(splits.test.texts),
        "asr": None,
        "untriggered_asr": None,
        "robust_accuracy": None,
        "target_recall": None,
        # Students may have been trained by another commit, which is in their facts.
        "evaluated_commit": runtime.commit(),
        **facts,
        **_fairness(config, job, predicted, facts),
    }
    if job.scenario.attack is not None:
        attack = config.attacks[job.scenario.attack]
        success = functools.partial(evals.attack_success_rate, target=attack.target)
        # Triggered rows from a file have no counterparts without the trigger.
        if attack.trigger != "file":
            truth = splits.test.labels
            kept = attacks.measured_rows(
                truth,
                target=attack.target,
                source_classes=tuple(attack.source_classes),
            )
            row["untriggered_asr"] = float(
                np.mean([success(p[kept], truth[kept]) for p in predicted])
            )
            of_target = scenarios.triggered_target(config, job.scenario)
            said = _predict(config, task, found, of_target)
            row["target_recall"] = float(
                np.mean([evals.robust_accuracy(p, of_target.labels) for p in said])
            )
        triggered = scenarios.triggered_test(config, job.scenario)
        predicted = _predict(config, task, found, triggered)
        truth = triggered.labels
        row["asr"] = float(np.mean([success(p, truth) for p in predicted]))
        row["robust_accuracy"] = float(
            np.mean([evals.robust_accuracy(p, truth) for p in predicted])
        )
    return row


def _predict(
    config: Settings, task, found: list[models.Model], examples
) -> list[np.ndarray]:
    """The predictions of each student: classes, or scores in regression."""
    # All students of a job have the same tokenizer.
    tokens = predict.tokenize(found[0], examples, config.lengths)
    outputs = [
        predict.predict(model, tokens, config.lengths, config.features).logits
        for model in found
    ]
    if task.problem == "regression":
        return [logits[:, 0] for logits in outputs]
    return [logits.argmax(-1) for logits in outputs]


def _fairness(config: Settings, job: Job, predicted, facts) -> dict[str, Any]:
    """The accuracies of the honest nodes of a federation, and their spread.

    A node's accuracy is weighted by its own class distribution.
    """
    task, splits = scenarios.task_data(config, job.scenario.task, job.scenario.seed)
    if not job.federation or task.problem == "regression":
        return {}
    rows = scenarios.node_rows(config, job.student_scenario)
    honest = len(rows) - facts["hostile_nodes"]
    # By the true labels: a node's class distribution must not depend on an attack.
    shares = partition.class_shares(
        splits.transfer.labels, rows[:honest], task.num_labels
    )
    accuracies = evals.node_accuracies(
        # A server's single student counts for every node.
        np.broadcast_to(predicted, (honest, len(splits.test.labels))),
        splits.test.labels,
        shares,
    )
    return {
        "node_accuracies": accuracies.tolist(),
        "node_variance": float(accuracies.var()),
        "worst_node": float(accuracies.min()),
        "bytes_sent": facts["traffic"]["total"],
    }
