"""What other programs are told, as they write it: Kubernetes, Docker, HAProxy."""

from __future__ import annotations

from importlib.resources import files
from string import Template


def filled(template: str, /, **values: object) -> str:
    """Return a template of this folder with its values put in, as they are."""
    return Template((files(__name__) / template).read_text()).substitute(values)
