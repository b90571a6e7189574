"""The same as `benchmarks.one`, in an app whose main module imports much, as apps do."""

import asyncio  # noqa: F401
import email.mime.multipart  # noqa: F401
import json  # noqa: F401
import sqlite3  # noqa: F401
import unittest.mock  # noqa: F401
import xml.etree.ElementTree  # noqa: F401

import numpy  # noqa: F401

from benchmarks.one import main

if __name__ == "__main__":
    main()
