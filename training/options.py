"""The flags that several commands of the training share."""

import argparse

from speakerlens.training.variants import VARIANTS


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda if there is one")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--set KEY=VALUE`, which is `overrides` of the parsed arguments."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a value of the file, such as --set optimiser.learning_rate=0.01; repeatable",
    )


def list_variants(parser: argparse.ArgumentParser) -> None:
    """List the variants at the end of the help."""
    parser.epilog = "variants:\n" + "\n".join(f"  {name:8} {variant.about}" for name, variant in VARIANTS.items())
