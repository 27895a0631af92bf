import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)  # the models are so small that a second thread only waits
    torch.manual_seed(0)
