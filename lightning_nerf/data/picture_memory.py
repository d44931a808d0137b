"""Where pixels lie: in the device's memory, in the host's, from where the device reads them, or in a mapped file only."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.scene import Images, Scene
from lightning_nerf.ops.memory import available_bytes

SHARE = 0.75  # of the device's free memory for pictures, where no budget says how much; the rest is the training's
_MAPPED = 1 | 2  # cudaHostRegisterPortable, cudaHostRegisterMapped
_LARGE = 2**20  # bytes, from which on an allocation has pages of its own
_TYPES = {torch.uint8: "|u1", torch.int64: "<i8", torch.float32: "<f4"}


def with_index(device: torch.device | str) -> torch.device:
    """ "cuda" as the current device's "cuda:i", which is what tensors carry."""
    device = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


class Kept(NamedTuple):
    """Which tensors of :class:`~lightning_nerf.data.Images` stay in the host's memory."""

    colors: bool
    drawable: bool


def kept_on_host(images: Images, budget: int | None) -> Kept:
    """What of the pictures does not fit in ``budget`` bytes of a device; None: no limit.

    Where not all of it fits, colors go to the host first: a ray reads one of each, and the list of drawable pixels is the
    smaller of the two where masks leave out much.
    """
    listed = 0 if images.drawable is None else images.drawable.nbytes
    if budget is None or images.colors.nbytes + listed <= budget:
        return Kept(colors=False, drawable=False)
    return Kept(colors=True, drawable=listed > budget)


def scene_on_device(scene: Scene, device: torch.device, budget_gib: float | None, split: str) -> Scene:
    """A scene for draws on ``device``. On CUDA, pixels beyond the budget stay in pinned host memory, as CUDA tensors.

    Those of a mapped file that the host's memory does not hold either stay CPU tensors: rays are drawn on the host.

    Args:
        scene: on the CPU.
        device: where to.
        budget_gib: GiB of the device's memory for the pictures; None: three quarters of what is free.
        split: for the message that says where pictures lie, if not all are on the device.
    """
    if device.type != "cuda":
        return scene.to(device)
    budget = _budget_bytes(device, budget_gib)
    images, kept = scene.images, kept_on_host(scene.images, budget)
    if not kept.colors:
        return scene.to(device)
    is_pinned = not needs_host_draws(images)
    rank_zero_info(_where(images, kept, budget, split, is_pinned))
    if not is_pinned:
        return scene._replace(cameras=scene.cameras.map(lambda tensor: tensor.to(device)))
    empty = {name: getattr(images, name)[:0] for name, stays in kept._asdict().items() if stays}
    there = scene._replace(images=images._replace(**empty)).to(device)
    views = {name: device_view(getattr(images, name), device) for name in empty}
    return there._replace(images=there.images._replace(**views))


def depths_on_device(depths: Tensor, device: torch.device, budget_gib: float | None) -> Tensor:
    """Depths [P] for draws on ``device``, as :func:`scene_on_device` has pixels; call it after that."""
    budget = _budget_bytes(device, budget_gib) if device.type == "cuda" else None
    return depths.to(device) if budget is None or depths.nbytes <= budget else device_view(depths, device)


def needs_host_draws(images: Images) -> bool:
    """Whether pixels are in a mapped file, and would not fit in the host's memory if they were read whole."""
    free = available_bytes(torch.device("cpu"))
    return is_mapped(images.colors) and free is not None and images.colors.nbytes > SHARE * free


def is_mapped(tensor: Tensor) -> bool:
    """Whether a CPU tensor's memory is a file."""
    return tensor.device.type == "cpu" and tensor.untyped_storage().filename is not None


def device_view(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor as a CUDA one of the same memory, which is pinned: kernels read it over the bus, and nothing is copied.

    The view keeps the memory alive and pinned. Its ``data_ptr()`` is the host's.

    Args:
        tensor: contiguous, uint8, int64 or float32.
        device: a CUDA device.

    Raises:
        BadArgument: the system does not lend so much pinned memory.
    """
    if tensor.numel() == 0:
        return tensor.to(device)
    with torch.cuda.device(device):
        memory = _HostMemory(tensor)
        view = torch.as_tensor(memory, device=device)
    if view.data_ptr() != memory.tensor.data_ptr():
        raise BadArgument(
            f"device_budget: {device} cannot read the host's memory; expected a budget that holds all pictures"
        )
    return view


class _HostMemory:
    """Pinned memory of a tensor, as torch takes over a device's memory from other libraries."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._registration = _pinned(tensor)
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": _TYPES[tensor.dtype],
            "data": (self.tensor.data_ptr(), False),
            "strides": None,
            "version": 3,
        }


class _Registration:
    """A tensor's own memory, pinned for as long as this lives."""

    def __init__(self, tensor: Tensor) -> None:
        weakref.finalize(self, _unpin, tensor, torch.cuda.current_device()).atexit = False


_registrations: weakref.WeakValueDictionary[int, _Registration] = weakref.WeakValueDictionary()  # by address


def _pinned(tensor: Tensor) -> tuple[Tensor, _Registration | None]:
    """The tensor, its own memory pinned; or a pinned copy.

    In place where it pays, because torch's pinned copy takes the same again, rounded up to a power of two. What is small
    shares its page with others, and pages of a file cannot be pinned: these are read into memory first.
    """
    if (known := _registrations.get(tensor.data_ptr())) is not None or tensor.is_pinned():
        return tensor, known
    if tensor.nbytes >= _LARGE:
        tensor = tensor.clone() if is_mapped(tensor) else tensor
        if int(_cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, _MAPPED)) == 0:
            known = _registrations[tensor.data_ptr()] = _Registration(tensor)
            return tensor, known
        with suppress(RuntimeError):
            torch.ones(1, device="cuda")  # raises for the failure above, for which a later kernel would be blamed
    try:
        return tensor.pin_memory(), None
    except RuntimeError as error:
        raise BadArgument(
            f"device_budget: the host cannot pin {tensor.nbytes / 2**30:.3g} GiB of pictures ({error}); "
            "expected a budget that holds them, or a larger downscale"
        ) from error


def _cudart() -> Any:  # torch does not type it
    return torch.cuda.cudart()


def _unpin(tensor: Tensor, device: int) -> None:
    torch.cuda.synchronize(device)  # a kernel may still read it
    _cudart().cudaHostUnregister(tensor.data_ptr())


def _budget_bytes(device: torch.device, gib: float | None) -> int | None:
    if gib is not None:
        return int(gib * 2**30)
    free = available_bytes(device)
    return None if free is None else int(SHARE * free)


def _where(images: Images, kept: Kept, budget: int | None, split: str, is_pinned: bool) -> str:
    on_host = images.colors.nbytes + (images.drawable.nbytes if kept.drawable and images.drawable is not None else 0)
    place = "pinned host memory and are read from there" if is_pinned else "a mapped file, and rays are drawn on the host"
    return (
        f"{split} pictures: {on_host / 2**30:.3g} GiB stay in {place}, "
        f"since the device has {(budget or 0) / 2**30:.3g} GiB for them (device_budget)"
    )
