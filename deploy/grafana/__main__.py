"""Write the dashboards' JSON: `python -m deploy.grafana`."""

from pathlib import Path

from deploy.grafana.catalogue import DASHBOARDS
from deploy.grafana.rendering import render

FOLDER = Path(__file__).parent / "dashboards"

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for stem, dashboard in DASHBOARDS.items():
        (FOLDER / f"{stem}.json").write_text(render(dashboard), encoding="utf-8")
