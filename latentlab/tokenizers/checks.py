"""What every tokenizer asks of its input, each in one clear line."""

from torch import Tensor

from latentlab.errors import UserError

_FAR = 16
"""Far outside [-1,1]: bytes as floats are beyond it, noise and overshooting interpolation are not."""


def check_images(images: Tensor, name: str, channels: int = 3, factor: int = 1) -> None:
    """Raise `UserError` unless ``images`` is a float batch [n,channels,H,W] whose sides are multiples of ``factor``.

    On the CPU also when they are far outside [-1,1].
    """
    if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
        raise UserError(
            f"images must be a float batch [n,{channels},H,W] in [-1,1], got {images.dtype} {list(images.shape)}"
        )
    height, width = images.shape[2:]
    if height % factor or width % factor or not height or not width:
        raise UserError(
            f"images of {height}x{width} pixels do not fit '{name}': sides must be multiples of {factor}; choose --image-size"
        )
    # Looking costs a GPU its lead over the CPU, so only what a CPU encodes is looked at: hardly anything beside the encoder.
    if images.device.type == "cpu" and images.numel() and images.amax() > _FAR:
        raise UserError(
            f"images must be in [-1,1], got values up to {images.amax():.4g}: divide by 127.5 and subtract 1"
        )


def check_latents(latents: Tensor, channels: int) -> None:
    """Raise `UserError` unless ``latents`` is [n,channels,h,w]."""
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise UserError(f"latents must be [n,{channels},h,w], got shape {list(latents.shape)}")


def check_indices(indices: Tensor, size: int, layout: str = "grid") -> None:
    """Raise `UserError` unless ``indices`` are integers below ``size``, [n,h,w] or, of the layout ``sequence``, [n,l]."""
    shape, dimensions = ("[n,h,w]", 3) if layout == "grid" else ("[n,l]", 2)
    if indices.ndim != dimensions or indices.is_floating_point():
        raise UserError(f"indices must be integers {shape}, got {indices.dtype} {list(indices.shape)}")
    if indices.numel() and (indices.min() < 0 or indices.max() >= size):
        raise UserError(f"indices must lie in 0..{size - 1}, got {indices.min()}..{indices.max()}")
