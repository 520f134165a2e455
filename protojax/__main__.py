"""The entry point of `python -m protojax`, the same as that of `protojax`."""

import sys

from protojax.cli import main

if __name__ == "__main__":
    sys.exit(main())
