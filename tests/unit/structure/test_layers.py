import pytest
import torch

from acsp_lightning.structure.layers import slice_tensor


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (6, 5, 1, 1), (6, 1, 3, 3), (1, 5, 3, 3)])
@pytest.mark.parametrize("dim", [0, 1])
def test_slices_keep_values_and_format(layout, shape, dim):
    tensor = torch.randn(shape).to(memory_format=layout)
    kept = torch.arange(0, shape[dim], 2)
    part = slice_tensor(tensor, dim, kept)
    assert torch.equal(part, tensor[kept] if dim == 0 else tensor[:, kept])
    assert part.data_ptr() != tensor.data_ptr()
    assert part.stride() == torch.empty(part.shape, memory_format=layout).stride()
