import sys

from speakerlens.export.cli import main

if __name__ == "__main__":  # processes that export beside one another import this module too
    sys.exit(main())
