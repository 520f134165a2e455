"""Benchmarks of language models: what they write, and steps of training.

`decode`: tokens a second that this library and transformers (with PyTorch) write with
the same random model, in one run. `device`: training and writing at the shapes of
t5-small and t5-base in bfloat16 on this machine's accelerator; minutes on one of 2022
or later. On CPUs it is a trial of small shapes.
"""

import dataclasses
import functools
import importlib
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.bench.measure import measure
from experiments.reports import results
from protojax import distillation, training
from protojax.base import SequenceBatch
from protojax.distillation import mean_gradient
from protojax.distillation.sequences import sequence_loss
from protojax.generation import generate
from protojax.models.language import (
    LanguageConfig,
    LanguageModel,
    apply_fn,
    head_fn,
    init_model,
    save_language_model,
    split_layers,
    start_fn,
    step_fn,
)

T5_SMALL = LanguageConfig(
    family="t5",
    vocab_size=32128,
    hidden_size=512,
    num_layers=6,
    encoder_layers=6,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=2048,
    positions="relative",
    norm_eps=1e-6,
    activation="relu",
    gated=False,
    float32_down=True,
    scale_attention=False,
    scale_head=True,
    end_ids=(1,),
)
T5_BASE = dataclasses.replace(
    T5_SMALL,
    hidden_size=768,
    num_layers=12,
    encoder_layers=12,
    num_heads=12,
    num_kv_heads=12,
    intermediate_size=3072,
)
LLAMA = LanguageConfig(
    family="llama",
    vocab_size=32000,
    hidden_size=512,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=1536,
    positions="rotary",
    max_positions=512,
    norm_eps=1e-5,
    gated=True,
    end_ids=(1,),
)

# Dense bfloat16 operations a second, by the beginning of `device_kind`; data sheets.
PEAKS = {"NVIDIA H200": 989e12, "NVIDIA H100": 989e12, "NVIDIA A100": 312e12}


def bench_decode(
    console: Console,
    *,
    configs: Iterable[LanguageConfig] = (T5_SMALL, LLAMA),
    batch_sizes: Iterable[int] = (8, 32),
    length: int = 64,
    max_new: int = 64,
) -> None:
    """Prints tokens a second of this library beside those of transformers.

    Greedy, in float32, without a stop token, so that both write `max_new` tokens a row.

    Args:
        console: the console to print to.
        configs: the models, which get random weights.
        batch_sizes: rows that are written together.
        length: tokens of each source or prompt.
        max_new: tokens to write a row.
    """
    title = f"tokens a second, {length} tokens read and {max_new} written a row"
    table = Table(title=title)
    for name in ("model", "rows", "protojax", "transformers", "ratio", "equal tokens"):
        table.add_column(name, justify="right")
    for config in configs:
        model = init_model(config, seed=0)
        other = transformers_model(model)
        for rows in batch_sizes:
            ids = np.random.default_rng(rows).integers(
                3, config.vocab_size, (rows, length)
            )
            ours = _writer(model, ids.astype(np.int32), max_new)
            runs = {"ours": ours}
            if other is not None:
                runs["theirs"] = functools.partial(
                    transformers_texts, other, ids, max_new
                )
            seconds = measure(runs, repeats=3)
            speed = {name: rows * max_new / found for name, found in seconds.items()}
            row = [config.family, str(rows), f"{speed['ours']:.0f}", "-", "-", "-"]
            if other is not None:
                equal = np.mean(np.asarray(ours().ids) == runs["theirs"]())
                row[3:] = f"{speed['theirs']:.0f}", "", f"{equal:.1%}"
                row[4] = f"{speed['ours'] / speed['theirs']:.2f}"
            table.add_row(*row)
    results.show(console, table)
    if other is None:
        console.print("transformers was not measured: torch is not installed.")


def _writer(model: LanguageModel, ids: np.ndarray, max_new: int) -> Callable[[], Any]:
    """A function that writes `max_new` tokens for each row."""
    functions = start_fn(model.config), step_fn(model.config)
    params, ids = split_layers(model.params), jnp.asarray(ids)

    def run():
        return generate(
            *functions,
            params,
            ids,
            jnp.ones_like(ids),
            max_new=max_new,
            stop_ids=(),
            pad_id=0,
        )

    return run


def transformers_model(model: LanguageModel) -> Any:
    """The same model in PyTorch, or None without PyTorch.

    Args:
        model: the model; it needs no tokenizer.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    encoder = model.config.encoder_layers > 0
    name = "AutoModelForSeq2SeqLM" if encoder else "AutoModelForCausalLM"
    loader = getattr(importlib.import_module("transformers"), name)
    with tempfile.TemporaryDirectory() as folder:
        save_language_model(f"{folder}/model", model)
        found = loader.from_pretrained(f"{folder}/model").eval()
    found.generation_config.eos_token_id = None
    return found


def transformers_texts(
    model: Any, ids: np.ndarray, max_new: int, **how: Any
) -> np.ndarray:
    """The tokens that transformers writes, `[rows, max_new]`.

    Args:
        model: in PyTorch.
        ids: `[rows, length]`.
        max_new: tokens to write a row.
        **how: of its `generate`; by default the most probable tokens.
    """
    torch = importlib.import_module("torch")
    given = torch.tensor(ids, dtype=torch.long)
    with torch.inference_mode():
        found = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=max_new,
            **({"do_sample": False, "num_beams": 1} | how),
        )
    return found[:, -max_new:].numpy()


def forward_flops(
    config: LanguageConfig, rows: int, length: int, written: int
) -> float:
    """Operations of the products of a teacher-forced forward pass, two a factor.

    >>> forward_flops(T5_SMALL, 1, 1, 0) / 2 == 6 * (4 * 512 * 512 + 2 * 512 * 2048
    ...     + 2 * 512) + 6 * 2 * 512 * 512
    True

    Args:
        config: an encoder-decoder.
        rows: rows of the batch.
        length: tokens of each source.
        written: tokens of each output.
    """
    width, inner = config.hidden_size, config.num_heads * config.head_dim
    perceptron = (3 if config.gated else 2) * width * config.intermediate_size
    projection = width * inner
    # Of each token: four projections, the perceptron, scores and sums over keys.
    encoder = length * (4 * projection + perceptron + 2 * inner * length)
    decoder = written * (6 * projection + perceptron + 2 * inner * (written + length))
    memory = length * 2 * projection
    head = written * width * config.vocab_size
    layers = config.encoder_layers * encoder + config.num_layers * (decoder + memory)
    return 2.0 * rows * (layers + head)


def bench_device(console: Console) -> None:
    """Prints the speed of training and of writing in bfloat16 on this machine's device.

    Args:
        console: the console to print to.
    """
    small = jax.default_backend() == "cpu"
    length, written = (32, 8) if small else (512, 128)
    kind = jax.devices()[0].device_kind
    peak = next((x for name, x in PEAKS.items() if kind.startswith(name)), None)
    table = Table(title=f"{kind}, bfloat16, {length} tokens read, {written} written")
    columns = ("model", "work", "rows", "time", "tokens a second", "of peak")
    for name in columns:
        table.add_column(name, justify="right")
    for name, config in (("t5-small", T5_SMALL), ("t5-base", T5_BASE)):
        if small:
            shape = {"num_layers": 1, "encoder_layers": 1, "vocab_size": 512}
            config = dataclasses.replace(config, **shape)
        model = init_model(dataclasses.replace(config, dtype="bfloat16"), seed=0)
        for rows in (2, 4) if small else (64, 256):
            ids = np.random.default_rng(0).integers(
                3, config.vocab_size, (rows, length)
            )
            write = _writer(model, ids.astype(np.int32), written)
            seconds = measure({"write": write}, repeats=3)["write"]
            speed = f"{rows * written / seconds:,.0f}"
            table.add_row(name, "write", str(rows), _time(seconds), speed, "")
        rows = 2 if small else 64
        seconds = measure({"train": _trainer(model, rows, length, written)})["train"]
        speed = f"{rows * (length + written) / seconds:,.0f}"
        # The backward pass has twice the products of the forward pass.
        flops = 3 * forward_flops(config, rows, length, written) / seconds
        share = "-" if peak is None else f"{flops / peak:.1%}"
        table.add_row(name, "train", str(rows), _time(seconds), speed, share)
    results.show(console, table)
    console.print(
        "train: a step of AdamW on outputs; tokens read and written count. "
        "of peak: products of the model alone, none counted twice."
    )


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _trainer(
    model: LanguageModel, rows: int, length: int, written: int
) -> Callable[[], Any]:
    """A function that takes a step of training and keeps the state."""
    config, rng = model.config, np.random.default_rng(0)
    loss_fn = sequence_loss(apply_fn(config), head_fn(config), hard_weight=1.0)
    optimizer = training.adamw(learning_rate=1e-4)
    dispatch = training.make_dispatch(
        training.make_step(mean_gradient(loss_fn), optimizer)
    )
    params = distillation.student_params(model.params)
    held = [training.init_state(params, optimizer, num_steps=10**6, seed=0)]
    batch = SequenceBatch(
        input_ids=rng.integers(3, config.vocab_size, (1, rows, length), np.int32),
        attention_mask=np.ones((1, rows, length), np.int32),
        output_ids=rng.integers(3, config.vocab_size, (1, rows, written), np.int32),
        output_weights=np.ones((1, rows, written), np.float32),
        where=np.ones((1, rows), bool),
    )
    batch = jax.tree.map(jnp.asarray, batch)

    def run():
        held[0], metrics = dispatch(held[0], batch)
        return metrics

    return run
