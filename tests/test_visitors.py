"""What a public page lets strangers do: limits of a request, of a share of the queue, of a day; and what is not there at all."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}

import asyncio
import base64
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from gradio_client import Client
from PIL import Image
from starlette.datastructures import Headers
from starlette.types import Message

from app import mode_line, space_author
from studio.errors import InvalidRequest, StorageError, StudioError
from studio.executors.dispatcher import Dispatcher
from studio.spec import parse_request
from studio.store.blobs import BlobStore
from studio.store.index import Database
from studio.store.jobs import JobStore
from studio.store.library import Library
from studio.ui.guard import Policy, address_of, is_host, policy_for
from studio.ui.services import Services
from studio.ui.traffic import BodyRefused, Exchange, Rates
from studio.visitors import EVERYBODY, Limits, Visitors
from tests.conftest import App, launch, wait_for
from tests.test_guard import TINY, ask

PROMPT = "a red circle on a blue background"


@pytest.fixture
def visitors(tmp_path: Path) -> Visitors:
    return Visitors(Limits(waiting=2, pictures=5, house=2, free=0), tmp_path)


# Limits of a request


@pytest.mark.parametrize(
    ("field", "most", "more"),
    [
        ("width", 1024, {"width": 1032}),
        ("height", 1024, {"height": 1032}),
        ("num_inference_steps", 50, {"num_inference_steps": 51}),
        ("hires_steps", 50, {"hires_steps": 51}),
        ("num_images_per_prompt", 4, {"num_images_per_prompt": 5}),
        ("batch_size", 4, {"batch_size": 5}),
        ("prompt", 2000, {"prompt": "x" * 2001}),
        ("negative_prompt", 2000, {"negative_prompt": "x" * 2001}),
        ("hires_scale", 1024, {"width": 512, "height": 512, "hires_scale": 2.05}),
        ("loras", 6, {"loras": [{"name": str(n)} for n in range(7)]}),
        ("width", 1024, {"image": "given", "width": 1024, "height": 1024, "extend_left": 8}),
    ],
)
def test_a_strangers_request_has_bounds(field: str, most: int, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"{most:,}|{most}") as told:
        Limits().check(parse_request({"prompt": PROMPT} | more))
    assert told.value.field == field
    assert "public page" in str(told.value)


def test_what_is_just_allowed_is_allowed() -> None:
    most = {"width": 1024, "height": 1024, "num_inference_steps": 50, "num_images_per_prompt": 4, "batch_size": 4}
    Limits().check(parse_request(most | {"prompt": "x" * 2000}))
    Limits().check(parse_request({"width": 512, "height": 512, "hires_scale": 2}))
    only = {"image": "given", "strength": 0, "hires_upscaler": "lanczos"}
    Limits().check(parse_request(only | {"width": 1024, "height": 1024, "hires_scale": 2}))
    with pytest.raises(InvalidRequest, match="makes 3072 pixels a side, which must be at most 2048"):
        Limits().check(parse_request(only | {"width": 1024, "height": 1024, "hires_scale": 3}))


# Share of the queue and of a day


def test_a_visitor_has_a_share_of_the_queue(visitors: Visitors) -> None:
    visitors.check_room("ann", 2, Counter(), 0)
    with pytest.raises(StudioError, match="2 jobs waiting at once"):
        visitors.check_room("ann", 1, Counter(ann=2), 0)
    visitors.check_room("bob", 1, Counter(ann=2), 0)


def test_new_names_from_one_address_share_one_house(visitors: Visitors) -> None:
    for number in range(5):
        visitors.seen(str(number), "203.0.113.7")
        visitors.seen(f"lan{number}", "10.0.0.1")  # the proxy's own: tells nobody apart
    visitors.seen("real", "8.8.8.8")
    for number in range(5):
        visitors.seen(f"g{number}", "1.1.1.1")
    taken = Counter({f"g{number}": 1 for number in range(4)} | {f"lan{number}": 1 for number in range(4)})
    with pytest.raises(StudioError):
        visitors.check_room("g4", 1, taken, 0)
    visitors.check_room("lan4", 1, taken, 0)
    visitors.check_room("real", 1, taken, 0)


def test_a_day_ends(tmp_path: Path) -> None:
    now = [1e9]
    visitors = Visitors(Limits(), tmp_path, lambda: now[0])
    visitors.spend("ann", "pictures", 3, 4)
    with pytest.raises(StudioError, match="today's pictures are used up"):
        visitors.spend("ann", "pictures", 2, 4)
    visitors.spend("ann", "pictures", 1, 4)  # a refused one was not counted
    visitors.spend("bob", "pictures", 4, 4)
    now[0] += 86_400
    visitors.spend("ann", "pictures", 4, 4)


def test_what_is_remembered_is_bounded(visitors: Visitors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.visitors.KEPT", 50)
    for number in range(500):
        visitors.seen(str(number), "8.8.8.8")
        visitors.spend(str(number), str(number), 1, 5)
        visitors.next_turn([("job", str(number))])
    assert len(visitors._places) == 50
    assert len(visitors._spent) <= 200
    assert len(visitors._served) <= 50


def test_the_disk_is_not_filled_by_strangers(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="almost full"):
        Visitors(Limits(free=2**62), tmp_path).check_room("ann", 1, Counter(), 0)
    with pytest.raises(StorageError, match="no more room"):
        Visitors(Limits(free=0, kept=10), tmp_path).check_room("ann", 1, Counter(), 11)


class Quiet:
    """An executor that draws nothing and notes in which order it was asked."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.stopped: list[tuple[str, str]] = []

    def start(self) -> None: ...

    def warm(self, model: object) -> None: ...

    def run(self, job: Any, emit: Any) -> None:
        self.order.append(job.owner)

    def stop(self, job: str, kind: str) -> None:
        self.stopped.append((job, kind))

    def close(self) -> None: ...


@pytest.fixture
def queue(tmp_path: Path, library: Library, visitors: Visitors) -> Iterator[Dispatcher]:
    database = Database(tmp_path / "studio.db")
    yield Dispatcher(Quiet(), JobStore(database), library, BlobStore(tmp_path / "blobs"), visitors=visitors)  # type: ignore[arg-type]
    database.close()


def test_who_floods_the_queue_waits_for_the_others(queue: Dispatcher) -> None:
    wanted = parse_request({"prompt": PROMPT})
    refused = 0
    for _ in range(300):
        try:
            queue.submit(wanted, "flood")
        except StudioError:
            refused += 1
    assert refused == 298
    queue.submit(wanted, "late")
    for _ in range(3):
        queue.submit(wanted, EVERYBODY)  # has no share
    order = []
    while entry := queue.jobs.claim(queue._visitors.next_turn if queue._visitors else None):
        order.append(entry.job.owner)
        queue.jobs.end(entry.id, "done")
    assert order[:3] == ["flood", "late", EVERYBODY]
    assert sorted(order) == sorted(["flood"] * 2 + ["late"] + [EVERYBODY] * 3)


def test_limits_hold_wherever_a_job_is_made(queue: Dispatcher) -> None:
    large = parse_request({"prompt": PROMPT, "width": 2048})
    with pytest.raises(InvalidRequest, match="width=2048 must be at most 1024"):
        queue.submit(large, "ann")
    assert queue.submit(large, EVERYBODY).request.width == 2048
    with pytest.raises(StudioError, match="pictures are used up"):
        queue.enqueue([queue.prepare(parse_request({"num_images_per_prompt": 3}), "ann") for _ in range(2)])
    assert queue.jobs.open_by_owner()["ann"] == 0


def test_a_strangers_job_has_a_deadline(queue: Dispatcher) -> None:
    entry = queue.jobs.get(queue.submit(parse_request({"prompt": PROMPT}), "ann").id)
    assert entry
    queue._too_late(entry, 600)
    assert queue.executor.stopped == [(entry.id, "interrupt")]  # type: ignore[attr-defined]
    assert queue.notices(entry.id) == ["this job was ended after 600 seconds, the most on a public page"]


def test_a_job_is_seen_by_its_owner(queue: Dispatcher) -> None:
    mine, nobodys = (queue.submit(parse_request({"prompt": PROMPT}), owner).id for owner in ("ann", ""))
    assert queue.seen_by(mine, "ann").id == queue.seen_by(mine, None).id == mine
    assert queue.seen_by(nobodys, "bob").id == nobodys
    for other in ("bob", ""):
        with pytest.raises(StudioError, match="there is no job"):
            queue.seen_by(mine, other)


# The guard's counts


def exchange(messages: list[Message | float], **more: Any) -> tuple[Exchange, list[Message]]:
    """Return an exchange whose body comes in pieces; a number is a time of silence on its clock."""
    now, sent, headers = [0.0], [], Headers(more.pop("headers", {}))

    async def receive() -> Message:
        while isinstance(messages[0], float):
            now[0] += messages.pop(0)  # type: ignore[operator]
        return messages.pop(0)  # type: ignore[return-value]

    async def send(message: Message) -> None:
        sent.append(message)

    settings = {"limit": 10_000, "files": 3} | more
    return Exchange(receive, send, headers, clock=lambda: now[0], **settings), sent  # type: ignore[arg-type]


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def all_of(one: Exchange, pieces: int) -> None:
    for _ in range(pieces):
        asyncio.run(one.receive())


def test_a_body_may_take_its_time_but_not_for_ever() -> None:
    quick, _ = exchange([piece(b"x"), 25.0, piece(b"x" * 900), piece(b"", False), 600.0, {"type": "http.disconnect"}])
    all_of(quick, 4)  # the last wait is for the end of the connection, not for the body
    slow, sent = exchange([piece(b"x"), *[value for _ in range(60) for value in (1.0, piece(b"x"))]])
    with pytest.raises(BodyRefused, match="less than 1,000 bytes a second"):
        all_of(slow, 60)
    assert slow.refusal and slow.refusal[0] == 408
    asyncio.run(slow.send({"type": "http.response.start", "status": 500}))
    assert sent == []


def test_what_is_left_of_a_body_is_not_read() -> None:
    def answered(headers: dict[str, str], pieces: int) -> bool:
        one, sent = exchange([piece(b"x"), piece(b"y", False)], headers=headers)
        all_of(one, pieces)
        asyncio.run(one.send({"type": "http.response.start", "status": 400, "headers": []}))
        return (b"connection", b"close") in sent[0]["headers"]

    assert answered({"transfer-encoding": "chunked"}, 1)
    assert answered({"content-length": "2"}, 0)
    assert not answered({"content-length": "2"}, 2)
    assert not answered({}, 0)
    assert not answered({"content-length": "0"}, 0)


def test_silence_ends_a_request() -> None:
    async def never() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    silent = Exchange(never, None, Headers(), limit=9, files=9, idle=0.05)  # type: ignore[arg-type]
    with pytest.raises(BodyRefused, match="Nothing of the request came"):
        asyncio.run(silent.receive())


def test_files_are_counted_across_pieces() -> None:
    form = {"headers": {"content-type": "multipart/form-data; boundary=b"}}
    text = b'--b\r\nContent-Disposition: form-data; name="files"; FileName="a.png"\r\n\r\nx\r\n'
    for size in (1, 7, 1000):
        whole = text * 4
        parts = [piece(whole[at : at + size]) for at in range(0, len(whole), size)]
        many, _ = exchange(list(parts), **form)
        with pytest.raises(BodyRefused, match="at most 3 files"):
            all_of(many, len(parts))
        few, _ = exchange([piece(text * 3, False)], **form)
        asyncio.run(few.receive())
    other, _ = exchange([piece(text * 9, False)])  # words of a JSON body
    asyncio.run(other.receive())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"data": [{"path": "https://example.org/a.png"}]}', 403),
        ('{"data": [{"path" : "HTTP://127.0.0.1/"}]}', 403),
        ('{"data": [{"path":"http:\\/\\/a"}]}', 403),
        ('{"data": [{"\\u0070ath":"\\u0068ttp://a"}]}', 403),
        ('{"data": [{"path": "/tmp/gradio/a.png", "url": "http://localhost/gradio_api/file=/tmp/gradio/a.png"}]}', 200),
        ('{"data": ["see https://example.org"]}', 200),
    ],
)
def test_addresses_are_not_fetched(body: str, expected: int) -> None:
    path = "/gradio_api/queue/join"
    halves = [body[:11].encode(), body[11:].encode()]
    assert ask(Policy(), path, method="POST", chunks=halves).status == expected
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        assert ask(Policy(), path, method="POST", chunks=[body.encode(encoding)]).status == 400
    assert ask(Policy(), "/studio/x", method="POST", chunks=halves).status == 200


def test_a_session_is_of_who_began_it() -> None:
    from studio.ui.guard import Guard

    guard = Guard(TINY, Policy("space", frozenset({"localhost"})))
    ann, bob = ([("Cookie", f"studio_client={digit * 32}")] for digit in "ab")
    body = b'{"session_hash": "s1", "data": []}'

    def statuses(headers: list[tuple[str, str]]) -> list[int]:
        return [
            ask(guard, "/gradio_api/queue/join", method="POST", chunks=[body], headers=headers).status,
            ask(guard, "/gradio_api/queue/data", query_string=b"session_hash=s1", headers=headers).status,
            ask(guard, "/gradio_api/heartbeat/s1", headers=headers).status,
        ]

    assert statuses(ann) == [200] * 3
    assert statuses(bob) == statuses([]) == [403] * 3
    assert statuses(ann) == [200] * 3
    assert ask(guard, "/gradio_api/queue/data", query_string=b"session_hash=s2", headers=bob).status == 200


def test_rates() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0], each=2.0, burst=4, open_at_once=2)
    assert [rates.begin("a") for _ in range(6)] == [0, 0, 0, 0, 1, 1]
    assert rates.begin("b") == 0
    now[0] += 1
    assert [rates.begin("a") for _ in range(3)] == [0, 0, 1]
    assert [rates.enter("a"), rates.enter("a"), rates.enter("a"), rates.enter("b")] == [True, True, False, True]
    rates.leave("a")
    assert rates.enter("a")


def test_a_browser_cannot_say_the_guards_words() -> None:
    space = Policy("space", frozenset({"ada-studio.hf.space"}), author="ada")
    scope: dict[str, Any] = {}

    async def keep(given: Any, receive: Any, send: Any) -> None:
        scope.update(given)
        await TINY(given, receive, send)

    from studio.ui.guard import Guard

    lies = [("X-Studio-Role", "host"), ("x-studio-sender", "8.8.8.8"), ("X-Forwarded-For", "1.1.1.1, 9.9.9.9")]
    ask(Guard(keep, space), "/x", headers=lies)
    assert [value for name, value in scope["headers"] if name.startswith(b"x-studio")] == [b"9.9.9.9"]
    told = {"userinfo": {"preferred_username": "ada"}, "expires_at": 9e9}
    ask(Guard(keep, space), "/x", headers=lies, session={"oauth_info": told})
    assert (b"x-studio-role", b"host") in scope["headers"]


@pytest.mark.parametrize(
    ("author", "session", "expected"),
    [
        ("ada", {"userinfo": {"preferred_username": "ada"}, "expires_at": 9e9}, True),
        ("ada", {"userinfo": {"preferred_username": "bob"}, "expires_at": 9e9}, False),
        ("ada", {"userinfo": {"preferred_username": "ada"}, "expires_at": 1.0}, False),
        ("ada", {"userinfo": {"preferred_username": "ada"}}, False),
        ("ada", {}, False),
        ("ada", "ada", False),
        ("", {"userinfo": {"preferred_username": ""}, "expires_at": 9e9}, False),
    ],
)
def test_who_the_owner_of_a_space_is(author: str, session: Any, expected: bool) -> None:
    scope = {"session": {"oauth_info": session}}
    assert is_host(scope, Policy("space", author=author)) is expected
    assert not is_host(scope, Policy("share", author=author))
    assert not is_host({}, Policy("space", author=author))


def test_without_a_secret_nobody_is_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    whole = {f"OAUTH_{name}": "x" for name in ("CLIENT_ID", "CLIENT_SECRET", "SCOPES")}
    whole |= {"SPACE_AUTHOR_NAME": "ada", "OPENID_PROVIDER_URL": "https://huggingface.co"}
    assert space_author(whole) == "ada"
    for name in whole:
        assert space_author({key: value for key, value in whole.items() if key != name}) == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert space_author(whole) == ""


def test_services_know_strangers_and_the_owner(visitors: Visitors) -> None:
    nothing: Any = SimpleNamespace()
    space = Services(*[nothing] * 11, visitors=visitors)
    space = Services(nothing, Policy("space", author="ada"), *[nothing] * 9, visitors=visitors)
    cookie = {"cookie": f"studio_client={'0af1' * 8}", "x-studio-sender": "8.8.8.8"}
    assert space.owner(cookie) == space.limit(cookie) == "0af1" * 8
    assert visitors.house("0af1" * 8) == "@8.8.8.8"
    assert space.owner(cookie | {"x-studio-role": "host"}) == EVERYBODY
    with pytest.raises(StudioError, match="pictures cannot be changed on a public page"):
        space.check_home(cookie, "pictures cannot be changed")
    space.check_home({"x-studio-role": "host"}, "x")
    home = Services(nothing, Policy(), *[nothing] * 9)
    assert (home.owner({}), home.limit({}), home.most("width")) == (EVERYBODY, None, None)


def test_addresses_on_a_space() -> None:
    def told(mode: Any, client: str, *forwarded: str) -> str:
        headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
        return address_of({"client": (client, 1), "headers": headers}, Policy(mode))

    assert told("space", "10.1.2.3", "6.6.6.6, 8.8.8.8") == "8.8.8.8"
    assert told("space", "10.1.2.3", "6.6.6.6", "8.8.8.8") == "8.8.8.8"
    assert told("space", "10.1.2.3") == "10.1.2.3"
    assert told("space", "10.1.2.3", "nonsense") == "10.1.2.3"
    assert told("space", "8.8.4.4", "6.6.6.6") == "8.8.4.4"
    assert told("share", "10.1.2.3", "6.6.6.6") == "10.1.2.3"


def test_the_mode_is_said_in_one_line() -> None:
    lines = {
        policy: mode_line(policy)
        for policy in (
            Policy(),
            policy_for(host="0.0.0.0", share=False, auth=("a", "b")),
            policy_for(host="127.0.0.1", share=True, auth=None),
            policy_for(host="0.0.0.0", share=False, auth=None, space_host="a.hf.space", author="ada"),
        )
    }
    assert all(line.startswith("Mode: ") and "\n" not in line for line in lines.values())
    for policy, line in lines.items():
        assert ("off: training" in line) is policy.public
    assert list(lines.values())[-1].endswith("ada, logged in, has no limits")


# A really launched Space


def picture(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


HOME_ONLY = {"lab", "download", "downloads", "merge", "datasets", "train", "estimate", "runs", "run", "stop"}
HOME_WORDS = (
    "st-merge-run",
    "st-model-sure",
    "st-download-start",
    "st-token-save",
    "st-lora-edit",
    "sd-chosen",
    "train-start",
)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    environment = {"SPACE_ID": "me/studio", "SPACE_HOST": "me-studio.hf.space"}
    running = launch(tmp_path_factory.mktemp("space"), "--host", "127.0.0.1", "--port", "7951", environment=environment)
    yield running
    running.stop()


def test_what_is_forbidden_is_not_there(space: App, app: App) -> None:
    endpoints = {name: set(running.get("/gradio_api/info").json()["named_endpoints"])
                 for name, running in (("home", app), ("space", space))}  # fmt: skip
    assert endpoints["home"] - endpoints["space"] == {f"/{name}" for name in HOME_ONLY}
    shown = {name: {part["props"].get("elem_id") for part in running.get("/config").json()["components"]}
             for name, running in (("home", app), ("space", space))}  # fmt: skip
    assert set(HOME_WORDS) <= shown["home"]
    assert not set(HOME_WORDS) & shown["space"]
    assert str(space.data) not in space.get("/config").text
    assert "Mode: Space" in space.output.read_text()


def test_a_stranger_meets_the_limits(space: App) -> None:
    cookies = {name: {"Cookie": f"studio_client={digit * 32}"} for name, digit in (("ann", "a"), ("bob", "b"))}
    ann, bob = (Client(space.url, verbose=False, headers=headers) for headers in cookies.values())
    for wrong, sentence in (
        ({"width": 2048}, "width=2048 must be at most 1024 on a public page"),
        ({"num_inference_steps": 51}, "at most 50"),
        ({"num_images_per_prompt": 5}, "at most 4"),
        ({"prompt": "x" * 2001}, "at most 2,000 are allowed"),
    ):
        with pytest.raises(Exception, match=sentence):
            ann.predict(**({"prompt": PROMPT} | wrong), api_name="/txt2img")
    made = ann.predict(prompt=PROMPT, num_inference_steps=1, api_name="/txt2img")
    assert made["state"] == "done"
    assert ann.predict(job=made["job"], api_name="/job")["images"]
    with pytest.raises(Exception, match="there is no job"):
        bob.predict(job=made["job"], api_name="/job")
    with pytest.raises(Exception, match="there is no job"):
        bob.predict(job=made["job"], api_name="/cancel")
    long = httpx.post(f"{space.url}/studio/prompt-report", json={"prompt": "x" * 2001}, headers=cookies["ann"])
    assert (long.status_code, "at most 2,000" in long.text) == (400, True)
    many = httpx.post(f"{space.url}/studio/zip", json={"ids": ["x"] * 101}, headers=cookies["ann"])
    assert many.status_code == 400
    large = ann.predict(image=picture(700, 500), scale=2, api_name="/upscale")
    assert large["state"] == "done"
    with pytest.raises(Exception, match="must be at most 2048"):
        ann.predict(image=picture(700, 500), scale=3, api_name="/upscale")
    assert wait_for(lambda: space.get("/healthz").json()["status"] == "ok")
