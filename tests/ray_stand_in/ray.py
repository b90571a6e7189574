"""A Ray for tests: each actor is a process of this machine, below the driver.

The variable STAND_IN_RAY holds JSON: `cpus` are the actors that it places at a time, `fails` is what starting one raises,
`needs` is a file without which there is no cluster, `wrong` what is wrong with a setting, `blocks` lets connecting take for
ever, and when the file `lies` is there, the first actor counts as dead although it lives.
"""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

HOW = json.loads(os.environ.get("STAND_IN_RAY", "{}"))
PLACE = """
import json
from cjm_worker_ext.backends.ray_driver import RayPlace

place = RayPlace()
place.AFTER_SECONDS = 0
print(json.dumps(place.open("127.0.0.1")), flush=True)
place.stay()
"""


class exceptions:  # noqa: N801
    class ActorDiedError(Exception):
        pass


waiting, placed, lock = [], set(), threading.Lock()


class Actor:
    count = 0

    def __init__(self):
        Actor.count += 1
        self.number = Actor.count
        self.opened, self.ended, self.process = Future(), Future(), None
        self.open, self.stay = (
            SimpleNamespace(remote=lambda future=future: SimpleNamespace(future=lambda: future))
            for future in (self.opened, self.ended)
        )
        waiting.append(self)
        place()

    def run(self):
        if "fails" in HOW:
            self.opened.set_exception(RuntimeError(HOW["fails"]))
            return
        self.process = subprocess.Popen([sys.executable, "-P", "-c", PLACE], stdout=subprocess.PIPE, text=True)
        self.opened.set_result(tuple(json.loads(self.process.stdout.readline())))
        while self.process.poll() is None and not (self.number == 1 and os.path.exists(HOW.get("lies", ""))):
            time.sleep(0.01)
        placed.discard(self)
        self.ended.set_exception(exceptions.ActorDiedError("The actor died:\n\tclass_name: RayPlace\nit was killed"))
        place()


def place():
    with lock:
        while waiting and len(placed) < HOW.get("cpus", 2):
            actor = waiting.pop(0)
            placed.add(actor)
            threading.Thread(target=actor.run, daemon=True).start()


def init(address, **options):
    if "wrong" in HOW:
        raise TypeError(HOW["wrong"])
    if "blocks" in HOW:
        print("[2026-01-01 W 1] client.cc:7: the token is missing", file=sys.stderr, flush=True)
        time.sleep(1000)
    if "needs" in HOW and not os.path.exists(HOW["needs"]):
        raise ConnectionError("no cluster is here")


def remote(**options):
    return lambda target: SimpleNamespace(remote=Actor)


def kill(actor):
    if actor in waiting:
        waiting.remove(actor)
    elif actor.process is not None:
        actor.process.kill()


def nodes():
    return [{"Alive": True, "Resources": {"CPU": HOW.get("cpus", 2)}}]


def available_resources():
    return {"CPU": HOW.get("cpus", 2) - len(placed)}


def shutdown():
    for actor in list(placed):
        kill(actor)
