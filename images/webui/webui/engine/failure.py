"""What PyTorch's exceptions mean."""

from __future__ import annotations

import torch

from webui.engine.base import EngineError, Reason

# Text in PyTorch's errors that means this GPU will not come back for this process, or at all.
LOST_GPU = ("no cuda gpus are available", "no cuda-capable device", "device unavailable", "invalid device ordinal")


def to_engine_error(error: Exception, otherwise: Reason) -> EngineError:
    """PyTorch tells most failures apart only by their text."""
    if isinstance(error, EngineError):
        return error
    text = str(error)
    lowered = text.lower()
    message = f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return EngineError("OOM", message)
    if isinstance(error, MemoryError) or "defaultcpuallocator" in lowered:
        return EngineError("HOST_OOM", message)
    if any(hint in lowered for hint in LOST_GPU):
        return EngineError("GPU_LOST", message)
    if "cuda error" in lowered or "cublas" in lowered or "cudnn" in lowered:
        return EngineError("CUDA_ERROR", message)
    return EngineError(otherwise, message)
