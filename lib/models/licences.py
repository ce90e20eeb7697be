"""What an encoder's pretrained weights may be used for: the licence by name, and one sentence where money is excluded.

A prize can count as commercial use, and a model in a product does; the rules of a competition decide.
"""

import segmentation_models_pytorch as smp
import timm

NON_COMMERCIAL = {
    "nvidia-source-code-license": "research or evaluation only",
    "cc-by-nc-4.0": "no commercial use",
    "fair-noncommercial-research-license": "non-commercial research only",
    "seer-license": "non-commercial research only",
    "apple-amlr": "non-commercial research only",
}
"""Licences, as timm spells them, that exclude commercial use -> what they allow."""

CODE_TOO = ("nvidia-source-code-license",)
"""Licences that cover the network's code as well, so that random weights do not help."""

SOCIAL = ("instagram", "ssl", "swsl")
"""smp's names of weights that Facebook trained on Instagram or YFCC100M photos, all CC BY-NC 4.0."""

NATIVE = {
    "mit_": "nvidia-source-code-license",
    "mobileone": "mobileone-license",
    "efficientnet-": "apache-2.0",
    "timm-": "apache-2.0",
    "resnet": "bsd-3-clause",
    "resnext": "bsd-3-clause",
    "vgg": "bsd-3-clause",
    "densenet": "bsd-3-clause",
    "mobilenet_v2": "bsd-3-clause",
    "dpn": "apache-2.0",
    "se": "apache-2.0",
    "inception": "apache-2.0",
    "xception": "apache-2.0",
}
"""Native smp encoders by start of name: smp's licenses/LICENSES.md for the first three, torchvision's licence for what
comes from there, timm's entry for the same weights for the rest."""


def licence(encoder: str) -> str | None:
    """Return the licence of an encoder's pretrained weights, in timm's spelling (``apache-2.0``); None: not known.

    ``tu-`` names, and names that only timm knows, are timm's; the others are smp's own, with the weights that
    ``encoder_weights: hub`` means.
    """
    if encoder in smp.encoders.encoders:
        if _hub_weights(encoder) in SOCIAL:
            return "cc-by-nc-4.0"
        return next((value for start, value in NATIVE.items() if encoder.startswith(start)), None)
    name = encoder.removeprefix("tu-")
    if not timm.is_model(name):
        return None
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such tag: building the network says so
        return None
    return config.license if config else None


def warning(encoder: str, encoder_weights: str = "hub") -> str | None:
    """Return one sentence for the user if the licence excludes commercial use, else None.

    ``encoder_weights`` is the network's setting: weights that are not taken bind nobody (``none``), code does.
    """
    name = licence(encoder)
    if name not in NON_COMMERCIAL or (encoder_weights == "none" and name not in CODE_TOO):
        return None
    return (
        f"encoder {encoder}: its licence is {name} ({NON_COMMERCIAL[name]}); check whether the competition's rules on "
        "prizes and external weights allow it, or choose another encoder"
    )


def _hub_weights(encoder: str) -> str:
    choices = smp.encoders.encoders[encoder]["pretrained_settings"]
    return "imagenet" if "imagenet" in choices else next(iter(choices), "")
