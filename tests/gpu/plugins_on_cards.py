"""Plugins that use a real card; workers import them, and import torch and the others only when a job needs them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

DEVICE = "cuda"
TOKENS = 128  # Of one request


# ---------------------------------------------------------------- a card that fails


def touch_torch() -> float:
    import torch

    return float((torch.ones(1000, device=DEVICE) * 2).sum().item())


def touch_cupy() -> float:
    import cupy

    return float((cupy.ones(1000) * 2).sum().get())


def touch_jax() -> float:
    import jax

    jax.devices("gpu")
    return float((jax.numpy.ones(1000) * 2).sum().block_until_ready())


def touch_numba() -> float:
    import numpy as np
    from numba import cuda

    return float(cuda.to_device(np.full(1000, 2.0)).copy_to_host().sum())


TOUCH = {"torch": touch_torch, "cupy": touch_cupy, "jax": touch_jax, "numba": touch_numba}


def touch(library: str) -> tuple[int, float]:
    "Use the card through one library; 2000 if it works."
    return os.getpid(), TOUCH[library]()


def poison(library: str, own: bool) -> tuple[int, float]:
    """Fail a device-side assertion, and use the card after it.

    All libraries of a process share one CUDA context, so torch's assertion ends it for the others too. `own`: the error
    that the job ends with is that of the assertion itself, and not of the call after it.
    """
    import torch

    TOUCH[library]()
    try:
        wrong = torch.tensor([1000], device=DEVICE)
        torch.zeros(4, device=DEVICE)[wrong].sum().item()
    except Exception:
        if own:
            raise
    return touch(library)


def swallow_everything(megabytes: int) -> int:
    "Ask for more memory than the card has."
    import torch

    return torch.empty(megabytes << 20, dtype=torch.uint8, device=DEVICE).numel()


# ---------------------------------------------------------------- memory


def hold(size: int, started: str, go_on: str, end: str = "return") -> int:
    "Fill memory of the card, say so, and wait, deaf to a cancel; then return, crash or be killed."
    import torch

    block = torch.full((size,), 1, dtype=torch.uint8, device=DEVICE)
    torch.cuda.synchronize()
    while True:
        try:
            Path(started).write_text(str(os.getpid()))  # within: from here on the cancel may come
            while not Path(go_on).exists():
                time.sleep(0.005)
            break
        except BaseException:  # noqa: BLE001  - `JobCancelled`: only a kill ends this job
            continue
    if end == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    return int(block[-1].item()) + os.getpid()


def which_card() -> tuple[int, str]:
    "How many cards there are for CUDA, and the UUID of the first one."
    import torch

    return torch.cuda.device_count(), str(torch.cuda.get_device_properties(0).uuid)


# ---------------------------------------------------------------- results


def tensor(kind: str, count: int) -> Any:
    import torch

    return (torch.arange(count, device=DEVICE) % 251).to(getattr(torch, kind))


# ---------------------------------------------------------------- a model


class Encoder:
    "As large as BERT: 12 layers of 768, random weights, half precision."

    def __init__(self) -> None:
        import torch
        from transformers import BertConfig, BertModel

        self.torch = torch
        torch.manual_seed(0)
        self.model = BertModel(BertConfig()).to(device=DEVICE, dtype=torch.float16).eval()

    def __call__(self, requests: list[list[int]]) -> list[Any]:  # One vector of 768 for each
        with self.torch.inference_mode():
            ids = self.torch.tensor(requests, device=DEVICE)
            vectors = self.model(input_ids=ids).last_hidden_state.mean(1).float().cpu().numpy()
        return list(vectors)


class OneByOne:
    def load(self, config):
        self.encoder = Encoder()

    def execute(self, tokens):
        return self.encoder([tokens])[0]


class Batched:
    max_batch_size = 32
    batch_wait_seconds = 0.005

    def load(self, config):
        self.encoder = Encoder()

    def execute_batch(self, batch):
        return self.encoder([params["tokens"] for params in batch])
