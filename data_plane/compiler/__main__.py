"""`python -m data_plane.compiler`: runs the compiling node, or enrolls it; as `python -m data_plane` does."""

import sys

from data_plane.__main__ import compiler_main

if __name__ == "__main__":
    sys.exit(compiler_main())
