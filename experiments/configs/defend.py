"""The defence of one's own rows: the job of `protojax defend`, by a config.

    python -m experiments.run --config=defend.py
    python -m experiments.run --config=defend.py --config.data.files.train=mine.csv \\
      --config.data.files.references=trusted.csv --config.teacher.model=DIR \\
      --config.student.model=DIR

Every field of `protojax.pipelines.Defence` is a field of the config. `student.model` is
what `--student` of the command is, such as DIR:0,2,5 or layers:0,2,5; where
`trusted_model.model` is '', the trusted model is what the student starts from.

Without files the job is made from bundled data: 2,000 rows of SNIPS, of which 5 % hold
a phrase and claim PlayMusic, and a teacher that learned them. They are written as
files, and the defence is told nothing else of them; what it was worth is measured
afterwards. Results go to the workdir, `report.html` first.
"""

from experiments.study.defaults import encoder, section
from protojax.pipelines import Defence


def get_config():
    """The job."""
    config = section(Defence())
    config.data = {
        "files": {"train": "", "references": "", "test": "", "teacher_logits": ""}
    }
    config.teacher.model = ""
    config.student = encoder("scratch", epochs=4, learning_rate=1e-3, dropout=0.0)
    config.trusted_model = encoder(
        "scratch", epochs=10, learning_rate=1e-3, dropout=0.0
    )
    config.lengths.max_length = 32
    config.lengths.buckets = (16, 32)
    return config
