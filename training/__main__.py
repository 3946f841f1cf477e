import sys

from speakerlens.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
