"""Tensors: with torch where it is installed, and with a look-alike of the few functions that are used where it is not.

torch is large, so it is no development requirement: `pip install torch`, then run this file.
"""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import messages
import pytest

from cjm_worker_ext.backends.codec import LARGE_BUFFER, decode, encode
from cjm_worker_ext.backends.codec_arrays import TORCH_TYPES
from cjm_worker_ext.errors import NotSerializable, RefusedType

np = pytest.importorskip("numpy")

try:
    import torch as real_torch
except ImportError:
    real_torch = None


class Dtype:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"torch.{self.name}"


def look_alike() -> Any:
    "As much of torch as the adapter uses; an item is a group of bytes, whatever its dtype."
    torch: Any = types.ModuleType("torch")
    torch.strided, torch.sparse = "strided", "sparse"
    for name in TORCH_TYPES:
        setattr(torch, name, Dtype(name))

    class Tensor:
        is_quantized = False

        def __init__(self, memory: Any, dtype: Dtype, shape: list[int], layout: str = "strided") -> None:
            self.memory, self.dtype, self.shape, self.layout = memory, dtype, tuple(shape), layout

        def numel(self) -> int:
            return math.prod(self.shape)

        def detach(self) -> Any:
            return self

        resolve_conj = resolve_neg = cpu = contiguous = detach

        def reshape(self, *shape: Any) -> Any:
            sides = shape[0] if isinstance(shape[0], list) else [self.numel()]
            return Tensor(self.memory, self.dtype, sides)

        def view(self, dtype: Dtype) -> Any:
            count = self.memory.nbytes // TORCH_TYPES[dtype.name]
            return Tensor(self.memory, dtype, [count])

        def numpy(self) -> Any:
            return self.memory

        def max(self) -> int:
            return int(self.memory.max())

    Tensor.__module__ = "torch"
    torch.Tensor = Tensor
    torch.frombuffer = lambda memory, dtype: Tensor(np.frombuffer(memory, "u1"), dtype, [memoryview(memory).nbytes])
    torch.empty = lambda shape, dtype: Tensor(np.zeros(0, "u1"), dtype, shape)

    def ones(shape: Any, dtype: Dtype) -> Any:
        size = math.prod(shape) * TORCH_TYPES[dtype.name]
        return Tensor(np.ones(size, "u1"), dtype, list(shape))

    torch.ones = ones
    return torch


@pytest.fixture(params=["torch", "look-alike"])
def torch(request, monkeypatch):
    if request.param == "torch":
        if real_torch is None:
            pytest.skip("torch is not installed")
        return real_torch
    module = look_alike()
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def memory_of(tensor: Any) -> bytes:
    return bytes(encode(tensor, most_buffers=0)[0])


def there_and_back(value: Any) -> Any:
    data, buffers = encode(value)
    return decode(data, [bytearray(buffer) for buffer in buffers])


@pytest.mark.parametrize("name", TORCH_TYPES)
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 5), (100, 300)])
def test_every_dtype_and_shape(torch, name, shape):
    tensor = torch.ones(shape, dtype=getattr(torch, name))
    arrived = there_and_back({"t": [tensor]})["t"][0]
    assert str(arrived.dtype) == f"torch.{name}" and tuple(arrived.shape) == shape
    assert memory_of(arrived) == memory_of(tensor)


def test_a_large_tensor_is_mapped(torch):
    data, (buffer,) = encode(torch.ones((300, 300), dtype=torch.float32))
    assert len(data) < 100 and buffer.nbytes == 360_000 >= LARGE_BUFFER
    memory = bytearray(buffer)
    arrived = decode(data, [memory])
    memory[:4] = b"\0\0\0\0"
    assert bytes(arrived.numpy().reshape(-1).view("u1")[:4]) == b"\0\0\0\0"


def test_what_is_no_tensor(torch):
    wrong = [
        ("int8", [2], b"\0"),
        ("int8", [-1], b""),
        ("int8", [1 << 40], b""),
        ("int8", [0, 1 << 40], b""),
        ("load", [1], b"\0"),
        ("bool", [1], b"\2"),
    ]
    for name, shape, content in wrong:
        with pytest.raises(RefusedType):
            decode(messages.adapted("torch.Tensor", name, shape, messages.memory(content)))
    with pytest.raises(RefusedType):
        decode(messages.adapted("torch.Tensor", "int8", [1], b"\0"))


@pytest.mark.skipif(real_torch is None, reason="torch is not installed")
def test_tensors_that_only_torch_has():
    torch: Any = real_torch
    cube = torch.arange(24.0).reshape(2, 3, 4)
    for value in (
        cube[:, ::2],
        cube.permute(2, 0, 1),
        torch.nn.Parameter(cube),
        cube.clone().requires_grad_() * 2,
        torch.tensor([1 + 2j]).conj(),
    ):
        arrived = there_and_back(value)
        assert torch.equal(arrived, value.detach()) and not arrived.requires_grad
    with pytest.raises(NotSerializable, match="is a sparse or quantized tensor; return tensor.to_dense"):
        encode(torch.eye(3).to_sparse())
    if torch.cuda.is_available():
        assert torch.equal(there_and_back(cube.cuda()), cube)
