"""A demonstration on two real models: `make demo`, or `python -m demo`."""

import os

# Read by huggingface_hub at its first import, so set before any module of the demo: all that is
# loaded lies in local folders, and loading them takes no progress bar.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
