"""Prints what OpenStack's format_inspector says of images, a line of JSON each."""

import json
import logging
import sys

from oslo_utils.imageutils import format_inspector

logging.disable(logging.CRITICAL)
for name in sys.argv[1:]:
    verdict = {"format": None, "size": 0, "reasons": []}
    try:
        found = format_inspector.detect_file_format(name)
        verdict["format"] = str(found)
        found.safety_check()
        verdict["size"] = found.virtual_size
    except format_inspector.SafetyCheckFailed as error:
        verdict["reasons"] = sorted(error.failures)
    except Exception as error:
        verdict["reasons"] = [type(error).__name__]
    print(json.dumps(verdict))
