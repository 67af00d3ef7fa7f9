"""A model says which videos it accepts; nothing heavy is imported for that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoLimits:
    """The `VideoLimits` of a model say which videos it accepts; they are read from its configs, without weights.

    Args:
        num_frames: Frames that it takes at once, 4k + 1; a longer clip is covered by overlapping windows of so many.
        height: Native height in pixels.
        width: Native width in pixels.
        multiple: Height and width must be multiples of this many pixels.
        temporal: Frames per latent frame after the first.
        patch_frames: Latent frames of a token; latents are padded in front to a multiple of it.
        largest: Greatest height and width in pixels that it has positions for; ``None`` where there is no end.
        fixed: Whether its positions were learned at the native size, and hold for no other.
        needs_image: Whether it wants the latents of an image beside those of the video.
    """

    num_frames: int
    height: int
    width: int
    multiple: int
    temporal: int
    patch_frames: int = 1
    largest: tuple[int, int] | None = None
    fixed: bool = False
    needs_image: bool = False

    @property
    def trained_multiple(self) -> int:
        """Frames after the first come in multiples of this where a model was trained, for it pairs its latent frames.

        Source: the model cards of zai-org/CogVideoX-5b, "should be 8N + 1", and CogVideoX1.5-5B, "should be 16N + 1".
        """
        return 2 * self.temporal * self.patch_frames

    def check_size(self, height: int, width: int) -> None:
        """Raise a ValueError unless the model has positions for frames of this size in pixels."""
        if self.fixed and (height, width) != (self.height, self.width):
            rule = f"the model has learned positions for {self.height} x {self.width} pixels only"
            raise ValueError(f"height, width: {rule}, got {height} x {width}")
        if self.largest is not None and (height > self.largest[0] or width > self.largest[1]):
            most = " x ".join(map(str, self.largest))
            raise ValueError(
                f"height, width: the model has positions for {most} pixels at most, got {height} x {width}"
            )

    def check_count(self, num_frames: int) -> None:
        """Raise a ValueError unless the model has positions for so many frames, or windows, which need no image."""
        if self.fixed and num_frames < self.num_frames:
            rule = f"the model has learned positions for {self.num_frames} frames, no fewer"
            raise ValueError(f"num_frames: {rule}, got {num_frames}")
        if self.needs_image and num_frames > self.num_frames:
            rule = f"an image-to-video model takes {self.num_frames} at most, for no later window has its first frame"
            raise ValueError(f"num_frames: {rule}, got {num_frames}")

    def check_first_frame(self, first_frame: object) -> None:
        """Raise a ValueError that names a first frame, unless the model is one that is shown an image."""
        if not self.needs_image:
            rule = "only an image-to-video model, zai-org/CogVideoX-5b-I2V for one, makes videos of it; leave it out"
            raise ValueError(f"first_frame: {rule} or take such a model, got {first_frame}")


def count_latent_frames(num_frames: int, limits: VideoLimits) -> int:
    """Return how many latent frames a model sees of 4k + 1 frames: k + 1, and what pads them to whole tokens."""
    latent_frames = (num_frames - 1) // limits.temporal + 1
    return latent_frames + -latent_frames % limits.patch_frames
