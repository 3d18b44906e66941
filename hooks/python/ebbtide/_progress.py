"""What commands say on stderr while they measure: what is on stdout is the answer alone."""

import sys

import torch


def progress(what):
    print(what, file=sys.stderr, flush=True)


def progress_of_links():
    """Of all at once: one call measures them, one after another."""
    for index in range(torch.cuda.device_count()):
        progress(f"cuda:{index}: about a second of copies, each way alone and both at once")


def progress_of_folders(folders):
    """As `progress_of_links`."""
    for folder in folders:
        progress(f"{folder}: about a second of writing and reading")
