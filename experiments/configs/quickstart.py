"""The whole method on bundled data, from scratch, in minutes on a laptop.

SNIPS (7 intents, CC0): a 3-layer teacher, 2-layer students, a tokenizer trained on the
spot; a rare word as trigger in 5 % of the rows.

    python -m experiments.run --config=quickstart.py

No download, no GPU, some minutes on 2 CPU cores; README.md shows what it prints.
"""

from experiments.study.defaults import attack, defaults, encoder, federation


def get_config():
    """The study."""
    config = defaults()
    config.tasks = ("snips",)
    config.seeds = (0,)
    config.federations = {"four": federation(rounds=12)}
    config.arms = (
        "clean",
        "plain",
        "prototype",
        "defended",
        "defended@four",
    )
    config.data.transfer_rows = 3000
    config.data.max_length = 32
    config.data.buckets = (16, 32)
    wide = {
        "hidden_size": 192,
        "num_layers": 3,
        "num_heads": 4,
        "intermediate_size": 768,
    }
    fresh = {"learning_rate": 1e-3, "batch_size": 64}
    config.teacher = encoder("scratch", scratch=wide, epochs=3, **fresh)
    small = {**fresh, "batch_size": 32}
    config.student = encoder("scratch", epochs=4, **small)
    config.trusted_model = encoder("scratch", epochs=10, **small)
    config.attacks = {"word_data": attack("rare_words", "data")}
    return config
