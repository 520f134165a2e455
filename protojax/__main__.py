"""`python -m protojax` does what `protojax` does."""

import sys

from protojax.cli import main

if __name__ == "__main__":
    sys.exit(main())
