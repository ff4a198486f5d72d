"""Where a model computes, and how precisely it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moe_core.errors import UsageError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# torch is imported late: every --help lists these names.
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def resolve_device(name: str, setting: str = "device") -> torch.device:
    """ "auto" = cuda if present, else cpu. Raises UsageError, naming the `setting`, for a device this machine lacks."""
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if present["cuda"] else "cpu")
    if not present.get(name, False):
        here = ", ".join(device for device, is_here in present.items() if is_here)
        raise UsageError(f"{setting} {name!r} is not present on this machine; expected auto or one of: {here}")
    return torch.device(name)


def resolve_dtype(name: str) -> torch.dtype | None:
    """None for "auto": as the weights were saved, float32 for a run of ours. Raises UsageError for another name."""
    import torch

    if name == "auto":
        return None
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is unknown; expected one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def on_device(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The values there. CUDA fetches them itself when it comes to it, and is not waited for."""
    import torch

    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
