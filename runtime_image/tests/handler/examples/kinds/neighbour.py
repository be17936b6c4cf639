"""A module beside the handler, to be imported by it."""

import os

COLOUR_AT_IMPORT = os.environ.get("COLOUR")
