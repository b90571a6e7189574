"""The children of the raw peers; imports no more than they need, as the limit should."""

import pickle
import socket
import struct
import time

HEAD = struct.Struct("<IB")  # length, kind
RESULT, CHUNKS = 0, 1
BUFFERS = struct.Struct("<Q")


def pack(value, kind=RESULT):
    "A frame; buffers of 1 MiB and more follow after the pickle."
    buffers: list[pickle.PickleBuffer] = []
    if isinstance(value, bytes) and len(value) > 1 << 19:
        value = ("bytes", pickle.PickleBuffer(value))
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    raws = [b.raw() for b in buffers]
    sizes = b"".join(BUFFERS.pack(raw.nbytes) for raw in raws)
    return [HEAD.pack(len(data), kind) + bytes([len(raws)]) + sizes + data, *raws]


def unpack(data, buffers):
    value = pickle.loads(data, buffers=buffers)
    return bytes(value[1]) if type(value) is tuple and value and value[0] == "bytes" else value


def socket_worker(fd):
    "The child's program: a blocking loop."
    from benchmarks import tasks

    sock = socket.socket(fileno=fd)

    def exactly(count):
        data = bytearray(count)
        view = memoryview(data)
        while view:
            view = view[sock.recv_into(view) :]
        return data

    def send(pieces):
        if len(pieces) == 1:
            return sock.sendall(pieces[0])
        for piece in pieces:
            sock.sendall(piece)

    buffer = bytearray(1 << 16)
    while count := sock.recv_into(buffer):
        length, _ = HEAD.unpack_from(buffer)
        head = HEAD.size + 1
        number = buffer[HEAD.size]
        sizes = [BUFFERS.unpack_from(buffer, head + 8 * i)[0] for i in range(number)]
        start = head + 8 * number
        data = bytes(buffer[start : min(count, start + length)])
        got = bytes(buffer[min(count, start + length) : count])
        if len(data) < length:
            data += exactly(length - len(data))
        buffers = []
        for size in sizes:
            whole = bytearray(size)
            whole[: len(got)] = got[:size]
            view = memoryview(whole)[len(got) :]
            got = got[size:]
            while view:
                view = view[sock.recv_into(view) :]
            buffers.append(whole)
        name, args = unpack(data, buffers)
        result = getattr(tasks, name)(*(value_of(a) for a in args))
        if hasattr(result, "__next__"):
            batch, since = [], time.monotonic()
            for chunk in result:
                batch.append(chunk)
                if len(batch) >= 512 or time.monotonic() - since > 0.001:
                    send(pack(batch, CHUNKS))
                    batch, since = [], time.monotonic()
            send(pack(batch, CHUNKS))
            result = None
        send(pack(result))


def value_of(arg):
    return bytes(arg[1]) if type(arg) is tuple and arg and arg[0] == "bytes" else arg


def pipe_worker(conn):
    from benchmarks import tasks

    while True:
        name, args = conn.recv()
        result = getattr(tasks, name)(*args)
        if hasattr(result, "__next__"):
            for chunk in result:
                conn.send(chunk)
            result = None
        conn.send(result)
