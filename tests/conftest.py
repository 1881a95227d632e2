"""One thread: the tensors of these tests are tiny, and threads that wait for each other cost more than they earn."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
