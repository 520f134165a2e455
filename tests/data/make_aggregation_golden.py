"""Makes `aggregation_golden.json`: what the package byzfl makes of nine updates.

    python -m venv /tmp/byzfl && /tmp/byzfl/bin/pip install byzfl==0.0.11
    /tmp/byzfl/bin/python tests/data/make_aggregation_golden.py

byzfl counts n − f − 1 neighbours in Krum, the paper and protojax n − f − 2, so its f is
larger by one here; multi-Krum then takes the mean of n − f − 1 updates.
"""

import json
import pathlib

import numpy as np

NUM_BYZANTINE = 2


def main():
    """Writes the file beside this script."""
    import byzfl  # in an environment of its own: it needs torch

    updates = np.random.default_rng(0).normal(size=(9, 6)).round(3)
    updates[7] *= 30
    updates[8] -= 10
    byzantine = NUM_BYZANTINE
    rules = {
        "mean": byzfl.Average(),
        "median": byzfl.Median(),
        "trimmed_mean": byzfl.TrMean(byzantine),
        "krum": byzfl.Krum(byzantine + 1),
        "multi_krum": byzfl.MultiKrum(byzantine + 1),
        "geometric_median": byzfl.GeometricMedian(nu=1e-6, T=2000),
        "centred_clipping": byzfl.CenteredClipping(L=3, tau=2.0),
    }
    found = {
        "updates": updates.tolist(),
        "results": {
            name: rule(updates.copy()).tolist() for name, rule in rules.items()
        },
    }
    path = pathlib.Path(__file__).with_name("aggregation_golden.json")
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
