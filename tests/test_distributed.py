"""Several processes on one machine: the same numbers, and no hanging when one dies."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from protojax.models import hf
from tests.test_study import write_rows

pytestmark = pytest.mark.extra
STUDENTS = ("defended@four", *(f"plain@ring/node_{node:03d}" for node in range(4)))
ONE_ARM = "--config.arms=('defended@four',)"

CONFIG = """
from experiments.study.defaults import attack, defaults, encoder, federation

SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}


def get_config():
    config = defaults()
    config.tasks, config.seeds = ("files",), (0,)
    config.arms = ("defended@four", "plain@ring")
    config.data.files.train, config.data.files.test = "train.tsv", "test.tsv"
    config.data.reference_rows = 80
    config.data.max_length, config.data.buckets = 16, (16,)
    config.data.vocab_size = 200
    fresh = {"scratch": SIZES, "learning_rate": 5e-3, "batch_size": 16}
    config.teacher = encoder("scratch", **fresh, epochs=4)
    config.student = encoder("scratch", **fresh, epochs=20)
    config.trusted_model = encoder("scratch", **fresh, epochs=8)
    config.prototypes.num = 6
    config.detection.false_rejection = 0.1
    config.attacks = {"data": attack("rare_words", "data", rate=0.1)}
    config.federations = {
        "four": federation(rounds=2),
        "ring": federation(rounds=2, topology="ring"),
    }
    config.steps_per_dispatch = 2
    config.checkpoint_every = 2
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a study is described, and one process has run it: `one`."""
    folder = tmp_path_factory.mktemp("distributed")
    write_rows(folder / "train.tsv", 300, seed=0)
    write_rows(folder / "test.tsv", 60, seed=1)
    (folder / "tiny.py").write_text(CONFIG)
    finish(start(folder, "one", 4))
    return folder


def without_students(folder, name):
    """Copies `one`, with teacher and trusted model, without students and rows."""
    shutil.copytree(folder / "one", folder / name)
    for path in (folder / name / "files/seed0/data").glob("*@*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / name / "results.json").unlink()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder, workdir, devices, *flags):
    """Starts one process of a study."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
        "XLA_FLAGS": re.sub(
            r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"]
        ),
    }
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.run", "--config=tiny.py"),
            *(f"--workdir={workdir}", *flags),
        ],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(folder, workdir, *flags):
    """Starts two processes that find each other."""
    port = free_port()
    return [
        start(
            folder,
            workdir,
            2,
            "--distributed",
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={number}",
            *flags,
        )
        for number in range(2)
    ]


def finish(*processes):
    """Waits for all and returns what the first printed."""
    texts = [process.communicate(timeout=280)[0] for process in processes]
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text[-3000:]
    return texts[0]


def students(folder, arms):
    names = [name for name in STUDENTS if name.partition("/")[0] in arms]
    return [
        hf.load_hf(folder / "files/seed0/data" / name / "model", num_labels=2).params
        for name in names
    ]


def alike(expected, found, compare, arms=("defended@four", "plain@ring")):
    for one, other in zip(students(expected, arms), students(found, arms), strict=True):
        jax.tree.map(compare, one, other)
    rows = [
        {row["arm"]: row for row in json.loads(text.read_text())["rows"]}
        for text in (expected / "results.json", found / "results.json")
    ]
    assert set(rows[1]) == set(arms)
    for arm in arms:
        for measure in ("clean_metric", "asr", "node_accuracies", "traffic"):
            assert rows[0][arm][measure] == rows[1][arm][measure]


# Sums over processes have another order than sums over the devices of one, and Adam
# makes steps of what is rounding only: the gradient of a key's bias is 0.
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def test_two_processes_equal_one(folder):
    text = finish(*start_two(folder, "two"))
    assert text.count("Results: ") == 1
    alike(folder / "one", folder / "two", close)


def wait_for_a_checkpoint(folder, process, known=frozenset()):
    """Returns the steps that the server has saved, once there is a new one."""
    steps = folder / "files/seed0/data/defended@four/checkpoints/server"
    deadline = time.monotonic() + 200
    while not (found := {path.name for path in steps.glob("step_*[0-9]")}) - known:
        assert time.monotonic() < deadline, "no checkpoint"
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)
    return known | found


def test_kill_9_costs_an_interval_only(folder):
    without_students(folder, "killed")
    killed = start(folder, "killed", 4, ONE_ARM)
    known = frozenset()
    for _ in range(3):
        known = wait_for_a_checkpoint(folder / "killed", killed, known)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        killed = start(folder, "killed", 4, ONE_ARM)
    finish(killed)
    alike(
        folder / "one",
        folder / "killed",
        np.testing.assert_array_equal,
        ["defended@four"],
    )


def test_a_dead_process_ends_the_other_and_a_restart_goes_on(folder):
    without_students(folder, "dead")
    processes = start_two(folder, "dead", ONE_ARM, "--heartbeat_seconds=5")
    wait_for_a_checkpoint(folder / "dead", processes[0])
    processes[1].send_signal(signal.SIGKILL)
    before = time.monotonic()
    text, _ = processes[0].communicate(timeout=120)
    assert time.monotonic() - before < 60
    assert processes[0].returncode != 0
    # Whichever notices first: a collective, or the heartbeat.
    assert "start all again" in text or "distributed service" in text
    processes[1].communicate()
    assert not (folder / "dead/results.json").exists()
    finish(*start_two(folder, "dead", ONE_ARM))
    alike(folder / "one", folder / "dead", close, ["defended@four"])
