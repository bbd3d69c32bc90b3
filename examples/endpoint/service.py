"""An endpoint with an image in and an image out: `adapter server run` in this folder serves it on port 8080."""

from __future__ import annotations

import PIL.Image
import PIL.ImageOps

from adapter.endpoint import Service
from adapter.endpoint.types import Image


class Poster(Service):
    """Reduces pictures to a few colors."""

    def setup(self) -> None:
        """Load what `infer` needs; a model would be loaded here."""
        self.most_bits = 8

    def infer(self, image: Image, bits: int = 2) -> Image:
        """Return the image with `bits` bits for each color channel, from 1 to 8, as PNG."""
        picture = image.to_pil().convert("RGB")
        reduced: PIL.Image.Image = PIL.ImageOps.posterize(picture, max(1, min(bits, self.most_bits)))
        return Image.from_pil(reduced, "PNG")
