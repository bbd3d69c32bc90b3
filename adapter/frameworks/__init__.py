"""Frameworks whose models can be saved, one file each; `base.Framework` tells how to add one."""
