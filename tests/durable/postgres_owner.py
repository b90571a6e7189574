"""An owner in a process of its own: it has one running job, renews its lease, and says what happens to it.

`python postgres_owner.py DSN NAME [here|elsewhere] [fork]`; *elsewhere*: others cannot see its process, as if it ran on
another machine.
"""

import os
import sys
import time

from cjm_worker_ext.errors import StoreFailed
from cjm_worker_ext.extensions.stores import JobChange, StoredJob
from cjm_worker_ext.jobs import utc_now
from cjm_worker_ext.stores.postgres import PostgresJobStore

dsn, name, where, *how = sys.argv[1:]
store = PostgresJobStore(dsn, lease_seconds=2)
if where == "elsewhere":
    import cjm_worker_ext.stores.postgres as module

    module.process_identity = lambda: "another-machine pid:[1] 1 1"
owner = store.open("text")
store.write(owner, [JobChange(StoredJob(name, "text", "p", utc_now(), status="running", owner=owner))])
if "fork" in how and not os.fork():
    time.sleep(60)  # it has all that its parent had open
    os._exit(0)
print(owner, flush=True)
while True:
    try:
        store.recover(owner)
    except StoreFailed:
        pass
    time.sleep(0.1)
