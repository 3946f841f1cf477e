"""Self-contained HTML pages: templates beside the code, files embedded as data URLs."""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HERE = Path(__file__).parent
_TYPES = {".svg": "image/svg+xml", ".png": "image/png", ".webp": "image/webp", ".flac": "audio/flac"}


def render(template: Path, **values: object) -> str:
    """Return a rendered template, which may include files beside it or beside this module.

    Values are escaped. Raises jinja2.UndefinedError for a name without a value.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(**values)


def data_url(file: Path) -> str:
    """Return a picture or a sound as a data URL."""
    return f"data:{_TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
