"""The manifests of deploy/kustomize: the base, and the base with a component."""

from typing import Any

import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "kustomize"


def base() -> dict[str, dict[str, Any]]:
    """Return the resources of the base, by kind and name."""
    text = (FOLDER / "base" / "speakerlens.yaml").read_text("utf-8")
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all(text)}


def with_component(name: str) -> dict[str, dict[str, Any]]:
    """Return the resources of the base with a component, whose patches add to lists; kubectl is not needed for it."""
    resources = base()
    document = yaml.safe_load((FOLDER / "components" / name / "kustomization.yaml").read_text("utf-8"))
    for each in document["patches"]:
        resource = resources[f"{each['target']['kind']}/{each['target']['name']}"]
        for change in yaml.safe_load(each["patch"]):
            *path, last = change["path"].split("/")[1:]
            assert (change["op"], last) == ("add", "-")
            at: Any = resource
            for step in path:
                at = at[int(step) if step.isdigit() else step]
            at.append(change["value"])
    return resources
