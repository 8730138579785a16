"""Image files: `encode` writes PNG and base64, `decode` reads files of callers, strictly.

What is judged must be what a viewer shows.

One still image of 8 bits a channel, in sRGB, upright and opaque, whole, and nothing behind it.
Whatever could make a viewer show something else than the pixels is refused by name.
`png`, `jpeg` and `webp` parse a container before anything is decoded, and keep only the parts that
make pixels: no profile, text or second picture reaches a decoder.
"""

from service.images.refusal import ImageRefused
from service.images.strict_decoder import FORMATS, decode, most_bytes

__all__ = ["FORMATS", "ImageRefused", "decode", "most_bytes"]
