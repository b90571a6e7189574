"""What a client may ask of a stream, over real HTTP: filters, who may listen, what is hidden, and where to go on."""

import json
import socket

import pytest
from test_sse import Server, read_events, unchunked

TEXT, SPEECH = {"worker_type": "text"}, {"worker_type": "speech"}
# job, event type, data
PUBLISHED = [
    ("a", "job:started", TEXT),
    ("b", "job:started", SPEECH),
    ("secret", "job:started", TEXT),
    ("a", "job:progress", {**TEXT, "message": "one\nevent: job:failed\r\ndata: {}\r\rid: 0-0\n\n\u2028"}),
    ("b", "job:completed", SPEECH),
    ("secret", "job:completed", TEXT),
    ("a", "job:completed", TEXT),
]
EVERYTHING = [(job, kind) for job, kind, _ in PUBLISHED if job != "secret"]
ANN, ROOT = "Bearer ann", "Bearer root"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(app="sse_guarded_app:app", log=tmp_path_factory.mktemp("log") / "server.log", MAX_EVENTS="50")
    yield server
    server.stop()
    assert "Traceback" not in server.log.read_text()


def listen(server, query="", who=ANN, last_event_id="") -> socket.socket:
    "Connect, as somebody."
    sock = socket.create_connection(("127.0.0.1", server.port), 30)
    headers = [f"GET /events{query} HTTP/1.1", "Host: x", f"Authorization: {who}"]
    headers += [f"Last-Event-ID: {last_event_id}"] if last_event_id else []
    sock.sendall("\r\n".join([*headers, "", ""]).encode())
    return sock


def read_all(server, sock: socket.socket, more=()) -> list[tuple[str, str, dict]]:
    "What comes until the server ends the stream, which it does after `more` was published."
    data = b""
    while b"\nretry: " not in data:  # it is connected, and what is published from here on is live
        data += sock.recv(65536)
    server.post("/publish", more)
    while piece := sock.recv(65536):
        data += piece
    assert data.startswith(b"HTTP/1.1 200"), data[:200]
    return read_events(unchunked(data))


def told(events) -> list[tuple[str, str]]:
    return [(data["job_id"], kind) for _, kind, data in events if kind.startswith("job:")]


def only(events, *kinds):
    return [data for _, kind, data in events if kind in kinds]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", lambda job, kind, data: True),
        ("?job=a", lambda job, kind, data: job == "a"),
        ("?job=a&job=b", lambda job, kind, data: job in "ab"),
        ("?worker_type=speech", lambda job, kind, data: data["worker_type"] == "speech"),
        ("?event=job:completed", lambda job, kind, data: kind == "job:completed"),
        ("?event=job:completed&event=job:started&job=b", lambda job, kind, data: job == "b"),
        ("?worker_type=speech&job=a", lambda job, kind, data: False),
        ("?job=secret", lambda job, kind, data: False),
        ("?job=a%0Aevent:%20x&other=1", lambda job, kind, data: False),
    ],
)
def test_filters(server, query, wanted):
    events = read_all(server, listen(server, query), PUBLISHED)
    assert told(events) == [(j, k) for j, k, d in PUBLISHED if j != "secret" and wanted(j, k, d)]


@pytest.mark.parametrize(("who", "status"), [("", 403), ("Bearer nobody", 403), ("Bearer expired", 401)])
def test_who_may_not_listen(server, who, status):
    with listen(server, who=who) as sock:
        answer = sock.recv(65536).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ") and "text/event-stream" not in answer
    assert server.stats()["clients"] == 0


@pytest.mark.parametrize("who", [ANN, ROOT])
def test_what_is_hidden_is_hidden_everywhere(server, who):
    """Live, on replay, and in a snapshot; and shown in all three to one who may see it."""
    expected = EVERYTHING if who == ANN else [(job, kind) for job, kind, _ in PUBLISHED]
    live = read_all(server, listen(server, who=who), PUBLISHED)
    assert told(live) == expected
    (first,) = [event_id for event_id, kind, _ in live if kind == "snapshot"]
    replayed = read_all(server, listen(server, who=who, last_event_id=first))
    assert told(replayed) == expected and not only(replayed, "snapshot", "resync")
    (snapshot,) = only(read_all(server, listen(server, who=who)), "snapshot")
    assert {item["job_id"] for item in snapshot["items"]} == {job for job, _ in expected}


def test_hostile_line_breaks_arrive_as_data(server):
    events = read_all(server, listen(server, "?event=job:progress"), PUBLISHED)
    assert [kind for _, kind, _ in events] == ["snapshot", "job:progress"]
    assert events[1][2]["message"] == PUBLISHED[3][2]["message"]
    assert events[1][0].split("-")[0] == events[0][0].split("-")[0] != "0"  # the id is the stream's


def place(events) -> str:
    return [event_id for event_id, _, _ in events][-1]


@pytest.mark.parametrize("kind", ["expired", "another epoch", "the future", "nonsense"])
def test_a_place_that_is_not_known_gives_one_resync(server, kind):
    known = place(read_all(server, listen(server), PUBLISHED))
    epoch, _, number = known.partition("-")
    if kind == "expired":
        server.post("/publish", [("a", "job:progress", {**TEXT, "n": n}) for n in range(200)])
    places = {"another epoch": f"0{epoch[1:]}x-{number}", "the future": f"{epoch}-{int(number) + 10**6}"}
    asked = places.get(kind, known if kind == "expired" else "../../etc")
    events = read_all(server, listen(server, last_event_id=asked), [("b", "job:started", SPEECH)])
    kinds = [k for _, k, _ in events]
    assert kinds.count("resync") == kinds.count("snapshot") == 1 and "gap" not in kinds
    assert kinds[0] == "resync" and told(events)[-1] == ("b", "job:started")
    assert json.dumps(only(events, "resync")) == json.dumps([{"reason": "expired" if kind == "expired" else "unknown"}])
