"""Health checks: answers.py URL [HOST] ends with 0 if the URL answers 200."""

import sys
import urllib.request

request = urllib.request.Request(sys.argv[1], headers={"Host": sys.argv[2]} if len(sys.argv) > 2 else {})
try:
    with urllib.request.urlopen(request, timeout=8) as answer:
        sys.exit(answer.status != 200)
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
