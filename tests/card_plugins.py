"""Plugins that say which card they see; workers import them, and need no card for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

CARD = "CUDA_VISIBLE_DEVICES"
at_import = os.environ.get(CARD)  # What a plugin saw that used CUDA when its module was imported


def see() -> tuple[int, str | None, str | None, str | None]:
    return os.getpid(), os.environ.get(CARD), at_import, os.environ.get("CUDA_DEVICE_ORDER")


def see_and_wait(started: str, go_on: str) -> str | None:
    while True:
        try:
            Path(started).write_text(str(os.getpid()))  # within: from here on the cancel may come
            while not Path(go_on).exists():
                time.sleep(0.005)
            return os.environ.get(CARD)
        except BaseException:  # noqa: BLE001  - only a kill ends it
            continue


def change_card() -> None:
    os.environ[CARD] = "7"


class FailsToLoad:
    def load(self, config):
        raise RuntimeError("no weights")

    def execute(self): ...


class OneAtATime:
    "Says whether the worker that had the card before is still there when this one loads."

    def load(self, config):
        self.file = Path(os.environ["CARD_FOLDER"], "on the card")
        self.seen = None
        if self.file.exists():
            self.seen = Path("/proc", self.file.read_text()).exists()
        self.file.write_text(str(os.getpid()))

    def execute(self):
        return os.getpid(), self.seen

    def unload(self):
        time.sleep(0.5)
