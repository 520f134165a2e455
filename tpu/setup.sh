#!/usr/bin/env bash
# Makes .venv with the accelerator's build of jax: setup.sh tpu | gpu
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  tpu) jax='jax[tpu]' ;;
  gpu) jax='jax[cuda13]' ;;
  *) echo "usage: $0 tpu|gpu" >&2; exit 2 ;;
esac
make install
.venv/bin/python -m pip install --upgrade "$jax"
.venv/bin/python - <<'PYTHON'
import jax
print(jax.devices())
if jax.default_backend() == "cpu":
    raise SystemExit("jax sees no accelerator: check its driver")
PYTHON
