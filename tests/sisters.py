"""Tiny experiments of the sister competitions: the real stages and formats, networks of a few layers."""

SEGMENTATION = {
    "architecture": "segmentation",
    "encoder": "tu-test_efficientnet",
    "options": {"decoder": "unet", "decoder_channels": [16, 16, 8, 8], "upsample_logits": 2},
}
TRAIN = {
    "epochs": 2,
    "batch_size": 4,
    "crop": 64,
    "sampling": {"samples": 16},
    "optimizer": {"lr": 3.0e-3, "weight_decay": 0.01},
    "clip": 1.0,
    "validate_every": 2,
    "select": "last",
}
COMMON = {"seed": 3, "folds": {"n": 2}, "predict": {"tta": "none", "tile": 128, "overlap": 0.25}}

EXPERIMENTS = {
    "binary_rle": {
        "competition": "binary_rle",
        "data": {"synthetic": {"scenes": 8, "test_scenes": 3, "size": 192, "seed": 1}},
        "models": {
            "patch": {
                "task": "loc",
                "network": {**SEGMENTATION, "images": ["image"]},
                "train": {**TRAIN, "augment": "light", "loss": {"terms": {"bce": 1, "dice": 1}}},
            }
        },
    },
    "bright": {
        "competition": "bright",
        "data": {"synthetic": {"scenes": 6, "test_scenes": 3, "size": 96, "seed": 1}},
        "models": {
            "unet": {
                "task": "loc",
                "network": {**SEGMENTATION, "images": ["pre", "post"]},
                "train": {**TRAIN, "augment": "light", "loss": {"terms": {"ce": 1}}},
            }
        },
    },
    "labels": {
        "competition": "labels",
        "folds": {"n": 2, "scheme": "group"},
        "data": {"synthetic": {"scenes": 16, "test_scenes": 3, "size": 80, "seed": 1}},
        "models": {
            "pictures": {
                "task": "cls",
                "view": {"size": 64, "fit": "square"},
                "network": {"architecture": "classifier", "encoder": "tu-test_efficientnet", "images": ["image"]},
                "train": {**TRAIN, "augment": "bag_of_tricks", "precision": "float16", "loss": {"terms": {"ce": 1}}},
            }
        },
        "search": {"axes": {"gain_rings": [0.5, 1.0, 2.0], "gain_checks": [0.5, 1.0, 2.0]}},
    },
    "multiclass_rle": {
        "competition": "multiclass_rle",
        "folds": {"n": 2, "scheme": "group"},
        "data": {
            "options": {
                "classes": ["large_bowel", "small_bowel", "stomach"],
                "train": "train/*/*/scans/*.png",
                "test": "test/*/*/scans/*.png",
                "id": r"(case\d+_day\d+)/scans/(slice_\d+)",
                "group": r"case\d+",
                "origin": 1,
            },
            "synthetic": {"scenes": 16, "test_scenes": 3, "size": 96, "seed": 1},
        },
        "models": {
            "organs": {
                "task": "loc",
                "network": {**SEGMENTATION, "images": ["image"]},
                "train": {**TRAIN, "augment": "light", "loss": {"terms": {"bce": 1, "dice": 1}}},
            }
        },
    },
    "voc": {
        "competition": "voc",
        "folds": {"n": 2, "scheme": "group"},
        "data": {"options": {"classes": ["background", "cheetah", "lion", "wolf", "tiger", "hyena", "fox"]},
                 "synthetic": {"scenes": 10, "test_scenes": 3, "size": 128, "seed": 1}},
        "models": {
            "unet": {
                "task": "loc",
                "network": {**SEGMENTATION, "images": ["image"],
                            "options": {**SEGMENTATION["options"], "boundary": True}},
                "train": {**TRAIN, "augment": "light", "loss": {"terms": {"ce": 1, "boundary_bce": 0.3},
                                                               "class_weights": "auto"}},
            }
        },
    },
    "videos": {
        "competition": "videos",
        "folds": {"n": 2, "scheme": "group"},
        "data": {"synthetic": {"scenes": 12, "test_scenes": 3, "size": 64, "seed": 1}},
        "models": {
            "frames": {
                "task": "cls",
                "view": {"size": 64, "fit": "square"},
                "network": {"architecture": "classifier", "encoder": "tu-test_efficientnet", "images": ["frames"]},
                "train": {**TRAIN, "augment": "light", "precision": "float16", "loss": {"terms": {"bce": 1}}},
            }
        },
    },
}  # fmt: skip
