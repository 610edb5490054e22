"""transformers' image processor of Qwen's models, which also takes one size for all pictures."""

from typing import Any

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class SizedImages(Qwen2VLImageProcessorPil):
    """Prepares pictures as its class does; with a height and a width as `size` each is resized to these.

    The same pixels as its class gives of pictures that Pillow resized before to such a size, which are whole
    cells: bounds of pixels alone cannot ask for it, because it keeps proportions.
    """

    def resize(  # type: ignore[override]
        self, image: Any, size: SizeDict, resample: Any, factor: int, **kwargs: Any
    ) -> Any:
        """Return an image [3, height, width] as large as its class or the fixed size asks for."""
        if not size.height:
            return super().resize(image, size, resample, factor, **kwargs)
        return PilBackend.resize(self, image, size, resample)


def sized_images(images: Any) -> Any:
    """Return an image processor as one that takes fixed sizes too; one of another class as it is."""
    if type(images) is not Qwen2VLImageProcessorPil:
        return images
    return SizedImages.from_dict(images.to_dict())


SizedImages.__name__ = Qwen2VLImageProcessorPil.__name__  # which `save_pretrained` writes
