"""`python -m deploy.image cpu|gpu`: build an image, as `speakerlens:cpu` or `speakerlens:gpu`."""

import sys

from deploy.image.builder import BuildError, build

if __name__ == "__main__":
    target = sys.argv[1]
    try:
        build(target, f"speakerlens:{target}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
