"""What all tests of pruning take."""

from __future__ import annotations

import pytest

pytest.importorskip("torch_pruning", reason="pruning needs pip install 'hasten[torch]'")
