"""`python -m data_plane`: the node."""

import sys

from data_plane.main import main

if __name__ == "__main__":
    sys.exit(main())
