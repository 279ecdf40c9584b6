"""Settings: read once from a TOML file and FAREBOX_* variables; refused as a whole when any is wrong."""

from farebox.config.load import default_offer, load_config
from farebox.config.settings import Config

__all__ = ["Config", "default_offer", "load_config"]
