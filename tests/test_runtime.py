"""A study in progress: what it gives to training, and what it keeps."""

from rich.console import Console
from rich.progress import Progress

from experiments import runtime, settings
from experiments.settings import Settings


def context_of(folder=None, progress=None, **fields):
    config = settings.make(Settings(), fields)
    return runtime.Context(config, folder, progress, 0)


def test_results_are_kept_for_two_cells_of_each_seed_at_once():
    asked = []

    @runtime.cached
    def build(context, cell):
        asked.append(cell)
        return cell

    two, one = context_of(replicas=2), context_of(replicas=1)
    for _ in range(2):
        assert [build(two, cell) for cell in range(4)] == [0, 1, 2, 3]
    assert asked == [0, 1, 2, 3]
    # Of one seed the third cell takes the place of the first.
    for cell in (0, 1, 2, 0):
        build(one, cell)
    assert asked[4:] == [0, 1, 2, 0]
    build.cache_clear()
    build(one, 0)
    assert asked[8:] == [0]


def test_results_are_kept_by_what_the_settings_say():
    """Mappings too, which no hash counts."""
    asked = []

    @runtime.cached
    def build(context, cell):
        asked.append(cell)

    def federations(alpha):
        named = {"partition": "dirichlet", "partition_args": {"alpha": alpha}}
        return context_of(federations={"four": named})

    for alpha in (0.3, 0.3, 0.5):
        build(federations(alpha), 0)
    assert len(asked) == 2


def test_training_is_given_what_the_study_says(tmp_path):
    progress = Progress(console=Console(quiet=True))
    task = progress.add_task("preparing", total=10)
    context = context_of(
        tmp_path,
        progress,
        data={"max_length": 8, "buckets": (4, 8)},
        evaluation={"batch_size": 3},
        steps_per_dispatch=2,
        checkpoint_every=7,
        keep_checkpoints=False,
    )
    around = context.around
    lengths = around.lengths
    assert (lengths.max_length, lengths.buckets) == (8, (4, 8))
    assert (lengths.steps_per_dispatch, lengths.evaluation_rows) == (2, 3)
    store = around.store("task/seed0/arm")
    assert store.folder == tmp_path / "task/seed0/arm"
    assert (store.every, store.keep) == (7, False)
    assert store.checkpoints == store.folder / "checkpoints"
    around.describe("an arm")
    around.on_progress(4.0)
    around.on_progress(2.5)
    assert progress.tasks[task].description == "an arm"
    assert progress.tasks[task].completed == 6.5


def test_a_variant_changes_its_fields_only():
    context = context_of(
        kd={"hard_weight": 0.5}, variants={"hot": {"kd": {"temperature": 9.0}}}
    )
    found = context.varied("hot")
    assert (found.config.kd.temperature, found.config.kd.hard_weight) == (9.0, 0.5)
    assert context.config.kd.temperature == 2.0
    assert found.config.margin == context.config.margin
    assert context.varied("") is context
