"""FreeInit (https://arxiv.org/abs/2312.07537): a run's result gives the next run the low frequencies of its noise."""

from __future__ import annotations

import torch

from webui.request import FreeInit

ORDER = 4  # of the Butterworth filter, as in the paper's code


def low_pass(settings: FreeInit, shape: tuple[int, int, int]) -> torch.Tensor:
    """What of each frequency is kept, 0..1, as (frames, h, w) with the zero frequency in the middle.

    A stop frequency is relative to the highest; 0 keeps nothing.
    """
    space, time = settings.spatial_stop_frequency, settings.temporal_stop_frequency
    if not space or not time:
        return torch.zeros(shape)
    axes = [2 * torch.arange(size, dtype=torch.float64) / size - 1 for size in shape]
    frames, height, width = torch.meshgrid(*axes, indexing="ij")
    square = (space / time * frames) ** 2 + height**2 + width**2
    if settings.filter == "butterworth":
        kept = 1 / (1 + (square / space**2) ** ORDER)
    elif settings.filter == "gaussian":
        kept = torch.exp(-square / (2 * space**2))
    else:
        kept = (square <= 2 * space).double()
    return kept.float()


def next_noise(settings: FreeInit, result: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """Low frequencies of the noised `result`, high ones of the `fresh` noise, all (1, channels, frames, h, w) float."""
    frames, height, width = result.shape[-3:]
    kept = low_pass(settings, (frames, height, width)).to(result.device)
    axes = (-3, -2, -1)
    mixed = _spectrum(result) * kept + _spectrum(fresh) * (1 - kept)
    return torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=axes), dim=axes).real


def _spectrum(tensor: torch.Tensor) -> torch.Tensor:
    axes = (-3, -2, -1)
    return torch.fft.fftshift(torch.fft.fftn(tensor.float(), dim=axes), dim=axes)
