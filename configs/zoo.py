"""42 pretrained models of ImageNet, to evaluate by the same protocols and the same noise.

python -m corm_jax.evaluate --config=configs/zoo.py --weights=DIR --data=tfds:imagenet2012 \
    --masks=MASK_RECORDS --output=evaluations/zoo
python -m corm_jax.report evaluations/zoo/* --output=zoo.html

DIR holds the files that are named here, as many as you have; the command says which are missing and
where they come from. It takes one GPU hours, a CPU days. The paper evaluates 42 models as well, but
no source that we have lists them: this choice is the project's, to cover the paper's families.
"""

from ml_collections import ConfigDict

TIMM = "https://huggingface.co/timm/{}/resolve/main/model.safetensors"
CLIP = "https://huggingface.co/timm/{}/resolve/main/open_clip_model.safetensors"
ROBUST = "https://huggingface.co/madrylab/robust-imagenet-models/resolve/main/{}"

# timm's names, with the tag of their weights: family -> (name, image size, share of the centre).
OF_TIMM = {
    "ResNet": [
        ("resnet18.tv_in1k", 224, 0.875),
        ("resnet34.tv_in1k", 224, 0.875),
        ("resnet50.tv_in1k", 224, 0.875),
        ("resnet101.tv_in1k", 224, 0.875),
        ("resnet152.tv_in1k", 224, 0.875),
        ("resnet50.a1_in1k", 224, 0.95),
    ],
    "Wide ResNet": [
        ("wide_resnet50_2.tv_in1k", 224, 0.875),
        ("wide_resnet101_2.tv_in1k", 224, 0.875),
    ],
    "ResNeXt": [
        ("resnext50_32x4d.tv_in1k", 224, 0.875),
        ("resnext101_32x8d.tv_in1k", 224, 0.875),
    ],
    "DenseNet": [
        ("densenet121.tv_in1k", 224, 0.875),
        ("densenet169.tv_in1k", 224, 0.875),
        ("densenet201.tv_in1k", 224, 0.875),
    ],
    "VGG": [("vgg16.tv_in1k", 224, 0.875), ("vgg19_bn.tv_in1k", 224, 0.875)],
    "Inception": [("inception_v3.tv_in1k", 299, 0.875), ("inception_v4.tf_in1k", 299, 0.875)],
    "MNASNet": [("mnasnet_100.rmsp_in1k", 224, 0.875)],
    "MobileNet": [
        ("mobilenetv2_100.ra_in1k", 224, 0.875),
        ("mobilenetv3_large_100.ra_in1k", 224, 0.875),
    ],
    "EfficientNet": [
        ("efficientnet_b0.ra_in1k", 224, 0.875),
        ("efficientnet_b1.ft_in1k", 224, 0.875),
    ],
    "ConvNeXt": [
        ("convnext_tiny.fb_in1k", 224, 0.875),
        ("convnext_small.fb_in1k", 224, 0.875),
        ("convnext_base.fb_in1k", 224, 0.875),
    ],
    "ViT": [
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 224, 0.9),
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", 224, 0.9),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", 224, 0.9),
        ("vit_base_patch32_224.augreg_in21k_ft_in1k", 224, 0.9),
    ],
    "DeiT": [
        ("deit_tiny_patch16_224.fb_in1k", 224, 0.9),
        ("deit_small_patch16_224.fb_in1k", 224, 0.9),
        ("deit_base_patch16_224.fb_in1k", 224, 0.9),
    ],
    "Swin": [
        ("swin_tiny_patch4_window7_224.ms_in1k", 224, 0.9),
        ("swin_small_patch4_window7_224.ms_in1k", 224, 0.9),
        ("swin_base_patch4_window7_224.ms_in1k", 224, 0.9),
    ],
    "self-supervised": [
        ("beit_base_patch16_224.in22k_ft_in22k_in1k", 224, 0.9),
        ("convnextv2_tiny.fcmae_ft_in1k", 224, 0.875),
    ],
}
# MadryLab's adversarially trained checkpoints: (architecture, file).
ROBUST_MODELS = [("resnet50", "resnet50_l2_eps3.ckpt"), ("resnet50", "resnet50_linf_eps4.0.ckpt")]
# OpenAI's CLIPs as open_clip holds them, whose activation is not open_clip's usual one.
CLIPS = [
    ("RN50-quickgelu", "resnet50_clip.openai"),
    ("ViT-B-32-quickgelu", "vit_base_patch32_clip_224.openai"),
    ("ViT-B-16-quickgelu", "vit_base_patch16_clip_224.openai"),
]


def get_config() -> ConfigDict:
    """Returns {"models": [{"name", "family", "model", "file", "source", ...}]}; see the module."""
    models = [
        {
            "name": name,
            "family": family,
            "model": f"timm:{name}",
            "file": f"{name}.safetensors",
            "source": TIMM.format(name),
            "image_size": image_size,
            "center_crop_share": share,
        }
        for family, members in OF_TIMM.items()
        for name, image_size, share in members
    ]
    models += [
        {
            "name": file.removesuffix(".ckpt"),
            "family": "robust ResNet",
            "model": f"timm:{architecture}",
            "file": file,
            "source": ROBUST.format(file),
            "image_size": 224,
            "center_crop_share": 0.875,
        }
        for architecture, file in ROBUST_MODELS
    ]
    models += [
        {
            "name": name,
            "family": "zero-shot CLIP",
            "model": f"open_clip:{name}",
            "file": f"{repository}.safetensors",
            "source": CLIP.format(repository),
            "image_size": 224,
            "center_crop_share": 1.0,
        }
        for name, repository in CLIPS
    ]
    config = ConfigDict()
    config.models = models
    return config
