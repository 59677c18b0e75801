"""`python -m datastill`."""

import sys

from datastill.cli import main

if __name__ == "__main__":
    sys.exit(main())
