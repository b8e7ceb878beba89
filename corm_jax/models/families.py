"""Which family a model is of, by its name: ours, timm's, torchvision's or open_clip's."""

import re

# The first that matches the name without its library decides.
FAMILIES: tuple[tuple[str, str], ...] = (
    (r"clip|^RN\d|^ViT-", "CLIP"),  # OpenAI's names, which ours are as well
    (r"inception|^googlenet|^xception", "Inception"),
    (r"wide_?resnet", "Wide ResNet"),
    (r"resnext", "ResNeXt"),
    (r"resnet|resnest", "ResNet"),
    (r"densenet", "DenseNet"),
    (r"^vgg", "VGG"),
    (r"mobilenet|mnasnet|^semnasnet", "MobileNet"),
    (r"efficientnet", "EfficientNet"),
    (r"regnet", "RegNet"),
    (r"convnext", "ConvNeXt"),
    (r"swin", "Swin"),
    (r"^deit", "DeiT"),
    (r"^beit|^eva", "BEiT"),
    (r"^vit|^flexivit", "ViT"),
    (r"^alexnet", "AlexNet"),
    (r"mixer|mlp", "MLP"),
)
OTHER = "other"


def family(name: str) -> str:
    """Returns the family of a model, `OTHER` where the name tells none.

    Args:
      name: as in `corm_jax.models.MODELS`, or "LIBRARY:NAME".
    """
    library, _, own_name = name.rpartition(":")
    if library == "open_clip":
        return "CLIP"
    return next((title for rule, title in FAMILIES if re.search(rule, own_name)), OTHER)
