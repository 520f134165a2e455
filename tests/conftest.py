"""Settings of the whole suite: quick compilation, and each program only once."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

# Nearly all of the suite's time is compilation of tiny programs that run once. Set
# before jax is imported; the doctests of the library share this file.
flags = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_backend_optimization_level=0",
    # Nodes live on devices; those of one CPU are emulated.
    "--xla_force_host_platform_device_count=8",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # An unknown flag ends the process, and each version has its own.
    flags += [
        # Takes half of the compilation's time; later versions are as quick without.
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE",
        # Splitting a tiny program for parallel compilation costs more than it saves.
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
os.environ["XLA_FLAGS"] = " ".join(flags)

# Where each operation was called: read by nobody, and found for each that is compiled.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Tracing makes millions of objects that live; looking through them all at each
# hundredth new one takes a twentieth of the suite's time.
gc.set_threshold(100_000, 50, 50)

# Studies begin with empty memories in many tests, and the workers share programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="protojax-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_collection_finish():
    """Leaves what was imported out of all later collections of garbage."""
    gc.freeze()


# The longest files, in falling order.
LONGEST = (
    *("test_study", "test_replicas", "test_federated", "test_models", "test_defenses"),
    *("test_defend", "test_newcomer", "test_bench", "test_private_runs"),
    *("test_matching", "test_federation", "test_aggregation", "test_losses"),
    *("test_private", "test_trainer", "test_objective", "test_prototypes"),
)


def pytest_collection_modifyitems(items):
    """Begins with the longest files, so that no worker ends with one of them."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
