"""What is seen of pictures with transparent parts."""

from PIL import Image


def over(image: Image.Image, colour: str) -> Image.Image:
    """Lay a picture of any mode over a colour, RGBA; one without transparent parts comes back as it is."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image)
