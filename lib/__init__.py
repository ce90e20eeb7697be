"""The rooms behind the six stages. ARCHITECTURE.md says what lives where."""

import os

# albumentations asks PyPI for a newer release when it is imported; a kernel has no network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
