"""GLUE at full size: a teacher of 355 M parameters, a student of 82 M.

    python -m experiments.run --config=glue.py:sst2
    python -m experiments.run --config=glue.py:sst2,quick --config.data.root=DATA

The argument names a task (all nine, default sst2) and, after a comma, `quick`: small
encoders from scratch and 2,000 rows, minutes on a laptop; it shows that a task runs,
not how well a language model performs on it. Hub access is needed for the full size;
`--config.data.root` and `--config.teacher.model` (likewise `student`,
`trusted_model`) take local folders instead.

Full size: RoBERTa-large to DistilRoBERTa, 50 prototypes, 1,000 references, margin 0.3,
5 % poison; bf16 on one accelerator of 40 GB or more. Not yet run at this size.
The published setting spreads the transfer set over 4 nodes; this config is one node.
"""

from experiments.study.defaults import attack, defaults, encoder
from protojax import validate

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def get_config(argument: str = "sst2"):
    """The study of one task.

    Args:
        argument: a task, or a task and `quick`, such as `"cola,quick"`.
    """
    task, _, size = argument.partition(",")
    if task == "quick":
        task, size = "sst2", "quick"
    validate.one_of(TASKS, task=task)
    validate.one_of(("", "quick"), size=size)
    config = defaults()
    config.tasks = (task,)
    config.teacher = encoder(
        "FacebookAI/roberta-large", learning_rate=1e-5, dtype="bfloat16"
    )
    config.student = encoder("distilbert/distilroberta-base", dtype="bfloat16")
    config.trusted_model = encoder(
        "FacebookAI/roberta-base", epochs=10, learning_rate=2e-5, dtype="bfloat16"
    )
    config.checkpoint_every = 100  # a teacher's checkpoint is 4 GB
    config.keep_checkpoints = False
    config.prototypes.num = 50
    config.margin.value = 0.3
    if task in ("rte", "wnli", "mrpc"):  # 635 to 3,668 training rows
        config.data.reference_rows = 200
    if task == "stsb":
        # A score has no target class, hence no backdoor of the kinds here.
        config.arms = ("clean", "references")
    else:
        config.attacks = {
            "word_data": attack("rare_words", "data"),
            "word_logits": attack("rare_words", "logits"),
            "sentence_data": attack("sentence", "data"),
            "sentence_logits": attack("sentence", "logits"),
        }
    return _quick(config) if size else config


def _quick(config):
    """Shrinks the study for a laptop: small fresh encoders, few rows, one seed."""
    config.seeds = (0,)
    config.checkpoint_every = 10
    config.data.transfer_rows = 2000
    config.data.reference_rows = min(400, config.data.reference_rows)
    config.data.test_rows = 300
    config.data.max_length = 64
    config.data.buckets = (32, 64)
    fresh = {"learning_rate": 1e-3, "batch_size": 32, "epochs": 6}
    config.teacher = encoder("scratch", **fresh)
    config.student = encoder("scratch", **fresh)
    config.trusted_model = encoder("scratch", **{**fresh, "epochs": 15})
    for name in list(config.attacks):
        if name not in ("word_data", "word_logits"):
            del config.attacks[name]
    return config
