"""Self-contained pages: templates beside the code, and files inside the page that shows them."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HERE = Path(__file__).parent
_TYPES = {".svg": "image/svg+xml", ".png": "image/png", ".webp": "image/webp", ".flac": "audio/flac"}


def render(template: Path, **values: object) -> str:
    """Fill a template in; it may include what lies beside it or beside this module.

    Values are escaped. A name without a value is an error of the template.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(**values)


def data_address(file: Path) -> str:
    """Put a picture or sound into an address of its own content."""
    return f"data:{_TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
