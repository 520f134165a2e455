"""Settings of the whole suite: quick compilation."""

import os

# Nearly all of the suite's time is compilation of tiny programs that run once. Set
# before jax is imported; the doctests of the library share this file.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        # Nodes live on devices; those of one CPU are emulated.
        "--xla_force_host_platform_device_count=8",
    ]
)
