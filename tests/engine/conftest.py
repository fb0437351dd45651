"""What several files of these tests set up alike."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """Gradients are off: `pytestmark = pytest.mark.usefixtures("no_gradients")` for a whole file."""
    with torch.no_grad():
        yield
