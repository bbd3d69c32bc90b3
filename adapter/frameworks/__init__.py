"""Frameworks whose models can be saved, one file each on `base`, whose `Framework` tells how to add one."""
