"""A benchmark of on-policy distillation beside transformers and PyTorch, in one run.

`distil`: tokens a second of rollouts, seconds of a step of on-policy distillation, and
the memory that each further token of a batch takes. Models are random Llamas in
float32; without torch our figures stand alone.
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.bench.language import (
    LLAMA,
    transformers_model,
    transformers_texts,
)
from experiments.bench.measure import measure
from experiments.reports import results
from protojax import distillation, training
from protojax.base import PyTree, SequenceBatch
from protojax.distillation import mean_gradient
from protojax.distillation.sequences import sequence_loss
from protojax.generation import generate
from protojax.models.language import (
    LanguageConfig,
    LanguageModel,
    apply_fn,
    head_fn,
    init_model,
    select_layers,
    split_layers,
    start_fn,
    step_fn,
)
from protojax.pipelines.distillability.experts import reader_of
from protojax.pipelines.distillability.students import read_fn
from protojax.rl.rollouts import Prompts, rollout

LEARNING_RATE = 1e-4


class Job(NamedTuple):
    """The models and sizes of a run.

    Attributes:
        teacher: a random model.
        student: some of its layers.
        rows: texts of a step.
        length: tokens of a prompt.
        written: tokens of a text.
        k: the teacher's tokens that are kept at each place.
        chunk: tokens whose logits are in memory at once.
    """

    teacher: LanguageModel
    student: LanguageModel
    rows: int
    length: int
    written: int
    k: int = 16
    chunk: int = 256

    @property
    def ids(self) -> np.ndarray:
        """Tokens of prompts and texts, `[rows, length + written]`, int32."""
        shape = self.rows, self.length + self.written
        least, most = 3, self.teacher.config.vocab_size
        return np.random.default_rng(0).integers(least, most, shape, np.int32)


def bench_distil(
    console: Console,
    *,
    config: LanguageConfig = LLAMA,
    layers: int = 4,
    rows: int = 8,
    length: int = 64,
    written: int = 64,
) -> None:
    """Prints the ratios of rollouts and steps, and the memory of a step.

    Args:
        console: the console to print to.
        config: of the teacher.
        layers: of the student, the teacher's first ones.
        rows: texts of a step.
        length: tokens of a prompt.
        written: tokens of a text.
    """
    teacher = init_model(config, seed=0)
    student = select_layers(teacher, range(layers))
    job = Job(teacher, student, rows, length, written)
    others = [transformers_model(model) for model in (teacher, student)]
    table = Table(
        title=f"{rows} rows, {length} tokens read and {written} written a row"
    )
    for name in ("", "protojax", "PyTorch", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row(*rollouts_row(job, others[1]))
    runs: dict[str, Callable[[], Any]] = {"ours": distiller(job)}
    if others[0] is not None:
        runs["theirs"] = torch_distiller(job, *others)
    seconds = measure(runs, repeats=3)
    table.add_row("a step on-policy, seconds", *compared(seconds, faster_is="less"))
    results.show(console, table)
    console.print(logits_line(job))
    console.print(memory_line(job))
    if others[0] is None:
        console.print("PyTorch was not measured: torch is not installed.")


def compared(found: dict[str, float], *, faster_is: str) -> list[str]:
    """Our figure, theirs and how many times as fast we are.

    >>> compared({"ours": 0.5, "theirs": 1.0}, faster_is="less")
    ['0.50', '1.00', '2.00']
    >>> compared({"ours": 400.0}, faster_is="more")
    ['400', '-', '-']

    Args:
        found: figures of "ours" and "theirs", the latter optional.
        faster_is: "less" or "more".
    """
    shown = [f"{found[name]:.{0 if faster_is == 'more' else 2}f}" for name in found]
    if len(found) == 1:
        return [*shown, "-", "-"]
    ratio = found["ours"] / found["theirs"]
    return [*shown, f"{ratio if faster_is == 'more' else 1 / ratio:.2f}"]


def rollouts_row(job: Job, other: Any) -> list[str]:
    """The line of rollouts: sampled texts of the student, without a score.

    Args:
        job: models and sizes.
        other: the student in PyTorch, or None.
    """
    model, key = job.student, jax.random.key(0)
    given = job.ids[:, : job.length]
    ids, mask = jnp.asarray(given), jnp.ones(given.shape, jnp.int32)
    functions = start_fn(model.config), step_fn(model.config)
    params = split_layers(model.params)

    def ours() -> Any:
        return generate(
            *functions,
            params,
            ids,
            mask,
            max_new=job.written,
            stop_ids=(),
            pad_id=0,
            key=key,
            temperature=1.0,
        )

    prompts = Prompts(given, np.ones_like(given))
    scored = functools.partial(
        rollout, model.config, model.params, model.params, prompts, key
    )
    runs = {"ours": ours, "scored": lambda: scored(draws=1, max_new=job.written)}
    if other is not None:
        sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        runs["theirs"] = functools.partial(
            transformers_texts, other, given, job.written, **sampled
        )
    seconds = measure(runs, repeats=3)
    speed = {name: job.rows * job.written / x for name, x in seconds.items()}
    with_scores = speed.pop("scored")
    name = f"rollout, tokens a second ({with_scores:.0f} with scores of two models)"
    return [name, *compared(speed, faster_is="more")]


def batch_of(job: Job) -> SequenceBatch:
    """Prompts and texts as a batch, every token of which counts.

    Args:
        job: sizes.
    """
    ids = job.ids
    given, texts = ids[:, : job.length], ids[:, job.length :]
    return SequenceBatch(
        input_ids=jnp.asarray(given),
        attention_mask=jnp.ones(given.shape, jnp.int32),
        output_ids=jnp.asarray(texts),
        output_weights=jnp.ones(texts.shape, jnp.float32),
        where=jnp.ones(job.rows, bool),
    )


def step_of(job: Job) -> tuple[Callable[[PyTree, SequenceBatch], Any], Any, Any]:
    """A step of on-policy distillation on texts that are there, as students take it.

    Args:
        job: models and sizes.

    Returns:
        `(teacher's parameters, batch) -> columns of the batch`, the compiled steps
        `(state, batches) -> (state, metrics)`, and the first state.
    """
    config, vocabulary = job.student.config, job.teacher.config.vocab_size
    reader = reader_of(job.teacher.config, None)
    read = read_fn(*reader, job.k, vocabulary, job.chunk)
    loss_fn = sequence_loss(
        apply_fn(config),
        head_fn(config),
        hard_weight=0.0,
        divergence="reverse_kl",
        length=job.written,
        chunk=job.chunk,
    )
    optimizer = training.adamw(learning_rate=LEARNING_RATE)
    step = training.make_step(mean_gradient(loss_fn), optimizer)
    params = distillation.student_params(job.student.params)
    state = training.init_state(params, optimizer, num_steps=10**6, seed=0)
    return read, training.make_dispatch(step), state


def distiller(job: Job) -> Callable[[], Any]:
    """A function that takes a step, teacher's reading included, and keeps the state.

    Args:
        job: models and sizes.
    """
    read, dispatch, state = step_of(job)
    held, batch = [state], batch_of(job)
    teacher = (jax.tree.map(jnp.asarray, job.teacher.params),)

    def run() -> Any:
        top, _ = read(teacher, batch)
        stacked = jax.tree.map(lambda x: x[None], batch._replace(**top))
        held[0], metrics = dispatch(held[0], stacked)
        return metrics

    return run


def torch_distiller(job: Job, teacher: Any, student: Any) -> Callable[[], Any]:
    """The same in PyTorch, as it is usually written: logits of all tokens at once.

    Args:
        job: sizes.
        teacher: in PyTorch.
        student: in PyTorch; it is trained.
    """
    torch = importlib.import_module("torch")
    ids = torch.tensor(job.ids, dtype=torch.long)
    places = slice(job.length - 1, -1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)

    def run() -> float:
        with torch.no_grad():
            log_p = torch.log_softmax(teacher(ids).logits[:, places], -1)
        log_q = torch.log_softmax(student(ids).logits[:, places], -1)
        loss = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return run


def logits_line(job: Job) -> str:
    """The tokens whose logits a step has at once, teacher's reading included.

    Args:
        job: models and sizes.
    """
    vocabulary = job.teacher.config.vocab_size
    read, dispatch, state = step_of(job)
    given = (job.teacher.params,), batch_of(job)
    stacked = _stacked(read, *given)
    tokens = max(
        most_tokens(read, vocabulary, *given),
        most_tokens(dispatch, vocabulary, state, stacked),
    )
    return f"logits at once, of {job.rows * job.written} tokens of a batch: of {tokens}"


def memory_line(job: Job) -> str:
    """The memory that a step takes for each further token of a batch.

    Args:
        job: models and sizes.
    """
    found = []
    for rows in (job.rows, 2 * job.rows):
        read, dispatch, state = step_of(job)
        batch = batch_of(job._replace(rows=rows))
        stacked = _stacked(read, (job.teacher.params,), batch)
        compiled = dispatch.lower(state, stacked).compile()
        found.append(compiled.memory_analysis().temp_size_in_bytes)
    further = (found[1] - found[0]) / (job.rows * job.written)
    alone = 4 * job.teacher.config.vocab_size
    return (
        f"memory of a step a further token: {further / 1e3:.1f} kB; its logits alone "
        f"would take {alone / 1e3:.1f} kB, and as much again backward"
    )


def _stacked(read: Callable, params: Any, batch: SequenceBatch) -> Any:
    """The shapes of one step's batch, with what the teacher says of it."""
    columns = batch._replace(**jax.eval_shape(read, params, batch)[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), columns)


def most_tokens(function: Callable, vocabulary: int, *given: Any) -> int:
    """The most tokens whose logits are one array of a program.

    Arrays `[..., vocabulary]` are counted; the matrix of the head is one as well, so
    that the width of a model is the least that is found where it is transposed.

    >>> most_tokens(lambda x: jnp.exp(x).sum(), 5, jnp.zeros((2, 3, 5)))
    6

    Args:
        function: of JAX.
        vocabulary: the size of the last axis.
        *given: its arguments, or their shapes.
    """
    program = jax.make_jaxpr(function)(*given).jaxpr
    return max(_sizes(program, vocabulary), default=0) // vocabulary


def _sizes(program: Any, last: int) -> list[int]:
    """The sizes of arrays with that last axis that a program makes, inner ones too."""
    found = []
    for equation in program.eqns:
        shapes = [variable.aval.shape for variable in equation.outvars]
        found += [math.prod(shape) for shape in shapes if shape[-1:] == (last,)]
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    found += _sizes(inner, last)
    return found
