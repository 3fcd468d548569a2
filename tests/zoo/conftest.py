"""What a file compiled is forgotten after it: a worker that keeps every family takes gigabytes."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def forgets_what_is_compiled():
    yield
    jax.clear_caches()
