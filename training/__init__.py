"""Turns data into weights, and measures them; never imported by `modeling`."""

from modeling.auto_classes import register_auto_classes

register_auto_classes()  # folders are loaded through the Auto classes here and there, and need no trust_remote_code
