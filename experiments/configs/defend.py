"""The defence of one's own rows: the job of `protojax defend`, by a config.

    python -m experiments.run --config=defend.py --config.data.files.train=mine.csv \\
      --config.data.files.references=trusted.csv --config.teacher.model=DIR \\
      --config.student.model=DIR
    python -m experiments.run --config=defend.py:bundled

The other fields are those of `protojax.pipelines.Defence`, with its defaults.
`student.model` is what `--student` of the command is, such as DIR:0,2,5 or
layers:0,2,5; where `trusted_model.model` is '', the trusted model is what the student
starts from. Results go to the workdir, `report.html` first.

`bundled` makes a job from bundled data: 2,000 rows of SNIPS, of which 5 % hold a
phrase and claim PlayMusic, and a teacher that learned them, with small models from
scratch. They are written as files to `given/`, and the defence, in `defended/`, is told
nothing else of them; what it was worth is measured afterwards.
"""

from experiments.study.defaults import encoder, section
from protojax import validate
from protojax.pipelines import Defence


def get_config(argument: str = ""):
    """The job.

    Args:
        argument: `""`, or `"bundled"` for a job made from bundled data.
    """
    validate.one_of(("", "bundled"), argument=argument)
    config = section(Defence())
    files = {"train": "", "references": "", "test": "", "teacher_logits": ""}
    config.data = {"files": files, "bundled": bool(argument)}
    config.teacher.model = config.trusted_model.model = ""
    if argument:
        small = {"learning_rate": 1e-3, "dropout": 0.0}
        config.student = encoder("scratch", epochs=4, **small)
        config.trusted_model = encoder("scratch", epochs=10, **small)
        config.lengths.max_length, config.lengths.buckets = 32, (16, 32)
    return config
