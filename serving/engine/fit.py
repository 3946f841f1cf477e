"""Check that an open graph is that of its bundle."""

import json
from typing import Any

from speakerlens.serving.bundle import Bundle, BundleError
from speakerlens.serving.engine.graphs import GraphSpec


def check_fits(session: Any, bundle: Bundle, spec: GraphSpec[Any, Any]) -> None:
    """Check the inputs, outputs and metadata of an open graph.

    Raises:
        BundleError: they are not those of the bundle's graph.
    """
    actual = {node.name: (node.type, len(node.shape)) for node in session.get_inputs()}
    expected = {"audio": ("tensor(float)", 2), "lengths": ("tensor(int64)", 1), **spec.inputs}
    if actual != expected:
        raise BundleError(f"{spec.file} takes {actual}, not {expected}")
    missing = sorted(set(spec.outputs) - {node.name for node in session.get_outputs()})
    if missing:
        raise BundleError(f"{spec.file} has no output {', '.join(missing)}")
    metadata = session.get_modelmeta().custom_metadata_map
    # The graph of another network gives results of the right shapes as well, under the wrong names.
    for key, value in (("variant", bundle.variant), ("version", bundle.version), ("speakers", list(bundle.speakers))):
        if _fact(metadata.get(key)) != value:
            raise BundleError(f"{spec.file} is of another bundle: its metadata disagrees with bundle.json about {key}")


def _fact(text: str | None) -> Any:
    """Return a value of a graph's metadata, which is JSON; None if it is missing or not JSON."""
    try:
        return json.loads(text or "null")
    except ValueError:
        return None
