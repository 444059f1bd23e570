"""The package's description: the README, with addresses that work outside of the repository, too."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
HOME = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"][
    "Source"
]
RELATIVE = r"(?![a-z]+:|#|/)"
"""An address in the repository: neither absolute nor within the page."""


def described(version: str) -> str:
    """Return the README with absolute addresses, in the repository as it was at a version."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(rf'((?:src|srcset)="){RELATIVE}', rf"\g<1>{HOME}/raw/v{version}/", text)
    return re.sub(rf'(\]\(|href="){RELATIVE}', rf"\g<1>{HOME}/blob/v{version}/", text)


found = re.search(r'__version__ = "(.+)"', (ROOT / "src" / "hasten" / "__init__.py").read_text())
assert found is not None
setup(long_description=described(found[1]), long_description_content_type="text/markdown")
