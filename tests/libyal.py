"""Prints what libvmdk or libvhdi reads of images: for each the size of the disk
and the SHA-256 digest of its content, or why it cannot be read."""

import hashlib
import sys

import pyvhdi
import pyvmdk

PIECE = 1 << 20


def open_image(name):
    if name.endswith(".vmdk"):
        image = pyvmdk.handle()
        image.open(name)
        image.open_extent_data_files()
    else:
        image = pyvhdi.file()
        image.open(name)
    return image


def facts(name):
    image = open_image(name)
    size = image.get_media_size()
    digest = hashlib.sha256()
    done = 0
    while done < size:
        data = image.read(min(PIECE, size - done))
        if not data:
            return f"ends at {done}"
        digest.update(data)
        done += len(data)
    return f"{size} {digest.hexdigest()}"


for name in sys.argv[1:]:
    try:
        print(facts(name))
    except OSError as error:
        print(error)
