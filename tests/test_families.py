import pytest

from corm_jax.models import MODELS
from corm_jax.models.families import FAMILIES, OTHER, family


def test_every_model_of_ours_has_a_family() -> None:
    found = {name: family(name) for name in MODELS}
    assert OTHER not in found.values()
    assert set(found.values()) == {
        *("ResNet", "Wide ResNet", "ResNeXt", "DenseNet", "ViT", "DeiT", "ConvNeXt", "Swin"),
        "CLIP",
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet50.a1_in1k", "ResNet"),
        ("timm:resnetv2_50x1_bit", "ResNet"),
        ("torchvision:wide_resnet50_2", "Wide ResNet"),
        ("timm:wide_resnet50_2", "Wide ResNet"),
        ("timm:seresnext50_32x4d", "ResNeXt"),
        ("timm:inception_resnet_v2", "Inception"),
        ("timm:inception_v3", "Inception"),
        ("torchvision:googlenet", "Inception"),
        ("timm:mnasnet_100", "MobileNet"),
        ("timm:tf_efficientnetv2_s", "EfficientNet"),
        ("timm:vit_base_patch16_clip_224.openai", "CLIP"),
        ("torchvision:vit_b_16", "ViT"),
        ("timm:deit3_small_patch16_224", "DeiT"),
        ("timm:swinv2_tiny_window8_256", "Swin"),
        ("timm:vgg16_bn", "VGG"),
        ("open_clip:convnext_base", "CLIP"),
        ("ViT-B-32", "CLIP"),
        ("RN50", "CLIP"),
        ("something_of_tomorrow", OTHER),
    ],
)
def test_names_of_other_libraries(name: str, expected: str) -> None:
    assert family(name) == expected


def test_no_family_is_named_twice() -> None:
    titles = [title for _, title in FAMILIES]
    assert len(titles) == len(set(titles))
