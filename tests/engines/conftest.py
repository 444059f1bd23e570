import pytest

pytest.register_assert_rewrite("hasten.testing.engine_tests")
