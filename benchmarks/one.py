"""One work, one peer, one process: `python -m benchmarks.one W1 ours`; the last line printed is the figures as JSON.

Imports nothing at its top: pools that use the spawn method import the main module again in each worker.
"""

import sys

PEERS = {
    "ours": "benchmarks.peer_ours:Ours",
    "socket": "benchmarks.peer_raw:RawSocket",
    "pipe": "benchmarks.peer_raw:RawPipe",
    "executor": "benchmarks.peer_pools:Executor",
    "pebble": "benchmarks.peer_pools:Pebble",
    "loky": "benchmarks.peer_pools:Loky",
    "mpire": "benchmarks.peer_pools:Mpire",
    "anyio": "benchmarks.peer_pools:Anyio",
    "dask": "benchmarks.peer_services:Dask",
    "ray": "benchmarks.peer_services:Ray",
    "celery": "benchmarks.peer_services:CeleryRedis",
    # of W13
    "ours-behind": "benchmarks.peers_durable:OursBehind",
    "ours-sqlite": "benchmarks.peers_durable:OursSQLite",
    "ours-sqlite-fsync": "benchmarks.peers_durable:OursSQLiteFsync",
    "ours-postgres": "benchmarks.peers_durable:OursPostgres",
    "huey": "benchmarks.peers_durable:Huey",
    "huey-fsync": "benchmarks.peers_durable:HueyFsync",
    "saq-redis": "benchmarks.peers_durable:Saq",
    "saq-redis-fsync": "benchmarks.peers_durable:SaqFsync",
    "saq-postgres": "benchmarks.peers_durable:SaqPostgres",
    "celery-redis": "benchmarks.peers_durable:Celery",
    "celery-redis-fsync": "benchmarks.peers_durable:CeleryFsync",
    "procrastinate": "benchmarks.peers_durable:Procrastinate",
    "pgqueuer": "benchmarks.peers_durable:PgQueuer",
}


def measure(work, peer_name, quick):
    import asyncio
    import importlib

    from benchmarks import works

    if work == "import":
        return works.imports(quick)
    if work.startswith("W11-"):
        from benchmarks import w11_sse

        return w11_sse.measure(peer_name, int(work.removeprefix("W11-")), quick)
    if work.startswith("W17-"):
        from benchmarks import w17_channels

        return w17_channels.measure(work.removeprefix("W17-"), quick)
    if work == "W14":
        from benchmarks import w14_agent

        return w14_agent.measure(quick)
    if work.startswith("W15-"):
        from benchmarks import w15_users

        return w15_users.measure(peer_name, work, quick)
    module, _, name = PEERS[peer_name].partition(":")
    peer = getattr(importlib.import_module(module), name)()

    async def run():
        return await works.RUN[work](peer, quick)

    return asyncio.new_event_loop().run_until_complete(run())


def main():
    import json
    import os
    import signal

    work, peer, cpu, quick = sys.argv[1:5]
    if cpu != "any":
        os.sched_setaffinity(0, {int(cpu)})
    try:
        outcome = {"figures": measure(work, peer, quick == "quick")}
    except NotImplementedError as e:
        outcome = {"cannot": str(e) or "not possible"}
    except BaseException as e:  # noqa: BLE001  - a peer may fail in its own way, and that is its result
        import traceback

        outcome = {"error": f"{type(e).__name__}: {e}"[:300], "traceback": traceback.format_exc()[-2000:]}
    print("\n" + json.dumps(outcome), flush=True)
    from benchmarks.works import children

    below = children(os.getpid())
    for pid in below:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
    os._exit(0)


if __name__ == "__main__":
    main()
