from __future__ import annotations

import pytest
import torch

from lightning_nerf.nerfacc.pack import pack_info
from tests.ops.harness import DEVICES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize(
    ("indices", "n_rays", "expected"),
    [
        ([0, 0, 1, 1, 1, 2, 2, 2, 2], 3, [[0, 2], [2, 3], [5, 4]]),
        ([1, 1, 4], None, [[0, 0], [0, 2], [2, 0], [2, 0], [2, 1]]),
        ([1, 1], 4, [[0, 0], [0, 2], [2, 0], [2, 0]]),
        ([], 2, [[0, 0], [0, 0]]),
        ([], 0, []),
        ([], None, []),
    ],
)
def test_begins_and_counts(
    device: str, dtype: torch.dtype, indices: list[int], n_rays: int | None, expected: list[list[int]]
) -> None:
    packed_info = pack_info(torch.tensor(indices, dtype=dtype, device=device), n_rays)
    assert packed_info.shape == (len(expected), 2)
    assert packed_info.dtype == torch.int64
    assert packed_info.tolist() == expected


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"ray_indices: expected shape \[N\]"):
        pack_info(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"ray_indices: expected dtype .* got torch.float32"):
        pack_info(torch.zeros(2))
    for bad in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="ray_indices: expected 0 <= index < n_rays = 3"):
            pack_info(torch.tensor(bad), 3)


@pytest.mark.gpu
def test_with_a_number_of_rays_nothing_synchronizes() -> None:
    indices = torch.tensor([0, 2, 2], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        pack_info(indices, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
