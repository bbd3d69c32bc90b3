#!/bin/sh
# run once while the images of compose.yaml are built: the model is saved in that of Triton, which writes the entries
set -e
if [ "$IMAGE" = triton ]; then python3 train.py; fi
