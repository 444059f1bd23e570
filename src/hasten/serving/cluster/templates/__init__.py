"""Fill in templates of configuration files for Kubernetes, Docker and HAProxy."""

from __future__ import annotations

from importlib.resources import files
from string import Template


def filled(template: str, /, **values: object) -> str:
    """Return a template of this folder with its values filled in, without escaping."""
    return Template((files(__name__) / template).read_text()).substitute(values)
