"""What PyTorch's exceptions mean."""

from __future__ import annotations

import torch

from webui.engine.base import EngineError, Reason

# Text in PyTorch's errors, in the order in which it is looked for: some messages hold several of these.
# Memory that could not be had: on the GPU by PyTorch itself, by the driver, or by a library when it sets itself up.
FULL_GPU = (
    *("cuda out of memory", "cuda error: out of memory", "cuda_error_out_of_memory", "cudaerrormemoryallocation"),
    *("cudnn_status_alloc_failed", "cublas_status_alloc_failed", "cublas_status_not_initialized"),
)
FULL_HOST = ("defaultcpuallocator", "cannot allocate memory", "std::bad_alloc")
# This GPU will not come back for this process, or at all.
LOST_GPU = (
    *("no cuda gpus are available", "no cuda-capable device", "device unavailable", "invalid device ordinal"),
    *("devices are busy or unavailable", "uncorrectable ecc", "gpu is lost", "driver shutting down", "nvlink"),
    *("cuda driver initialization failed", "cuda unknown error", "system not yet initialized"),
)
# The CUDA context is broken, and with it every later call of this process: asserts, bad addresses, failed libraries.
BROKEN_GPU = (
    *("cuda error", "cuda driver error", "device-side assert", "illegal memory access", "triton error [cuda]"),
    *("cublas", "cudnn", "cufft", "cusolver", "cusparse", "curand", "nvrtc", "nccl"),
)

# From 2.8 on PyTorch has a class of its own for what a device reports.
ACCELERATOR_ERROR: tuple[type[Exception], ...] = tuple(filter(None, [getattr(torch, "AcceleratorError", None)]))


def to_engine_error(error: Exception, otherwise: Reason) -> EngineError:
    """PyTorch tells most failures apart only by their text."""
    if isinstance(error, EngineError):
        return error
    text = str(error)
    lowered = text.lower()
    message = f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
    if isinstance(error, torch.cuda.OutOfMemoryError) or _holds(lowered, FULL_GPU):
        return EngineError("OOM", message)
    if isinstance(error, MemoryError) or _holds(lowered, FULL_HOST):
        return EngineError("HOST_OOM", message)
    if _holds(lowered, LOST_GPU):
        return EngineError("GPU_LOST", message)
    if _holds(lowered, BROKEN_GPU) or isinstance(error, ACCELERATOR_ERROR):
        return EngineError("CUDA_ERROR", message)
    return EngineError(otherwise, message)


def _holds(text: str, hints: tuple[str, ...]) -> bool:
    return any(hint in text for hint in hints)
