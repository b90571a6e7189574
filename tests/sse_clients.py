"""Many healthy clients of an event stream in a process of their own: `sse_clients.py PORT CLIENTS ENDS`.

Each reads until it has seen the end of so many jobs; printed is what each one saw, every different list once.
"""

import asyncio
import json
import sys

ENDS = "event=job:completed&event=job:failed&event=job:cancelled"


async def read(port: int, query: str, count: int, ready: asyncio.Semaphore) -> tuple[str, ...]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(f"GET /events?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    seen, kind = [], b""
    while len(seen) < count:
        line = await reader.readline()
        if not line:
            break
        if line.startswith(b"event: "):
            kind = line[7:].strip()
            if kind == b"snapshot":
                ready.release()
        elif line.startswith(b"data: ") and kind in (b"job:completed", b"job:failed", b"job:cancelled"):
            seen.append(json.loads(line[6:])["job_id"])
    writer.close()
    return tuple(seen)


async def main(port: int, clients: int, count: int) -> None:
    ready = asyncio.Semaphore(0)
    # every hundredth one reads everything, not just the ends of jobs
    queries = ["" if n % 100 == 0 else ENDS for n in range(clients)]
    tasks = [asyncio.create_task(read(port, query, count, ready)) for query in queries]
    for _ in range(clients):
        await ready.acquire()
    print("ready", flush=True)
    found = await asyncio.gather(*tasks)
    print(json.dumps({"clients": len(found), "seen": sorted(set(found))}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
