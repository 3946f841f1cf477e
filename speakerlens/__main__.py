"""`python -m speakerlens`: the same as the command `speakerlens`."""

import sys

from speakerlens.cli.main import main

if __name__ == "__main__":  # `speakerlens export` starts processes that import this module too
    sys.exit(main())
