"""What users complain of, one function each: what this server does, in few words, and what was seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from loadtests.bench.process import Failed
from loadtests.complaints.adapters import Known, bad, ineffective
from loadtests.complaints.servers import SLOTS, Ours, Server, Stock, overwrite
from loadtests.swap_under_load.fingerprints import TEXTS, TOLERANCE, Scores, distance
from service.http.keys import new_key

Finding = tuple[str, dict[str, Any]]
ASKED = TEXTS[:3]


def stale_answers(server: Server) -> Finding:
    """Ask, replace the weights under the same name, ask the same again: whose answers are they?"""
    m, seen = server.material, {}
    for number, (way, replace) in enumerate(server.ways().items()):
        name, folder = f"replaced-{number}", server.scratch / f"replaced-{number}"
        folder.mkdir()
        overwrite(folder, m.a.folder)
        if refused := server.offer(name, folder):
            raise Failed(refused)
        before = [_whose(server, server.ask(name, text), n) for _ in range(2) for n, text in enumerate(ASKED)]
        replace(name, folder, m.b.folder)
        after = [server.ask(name, text) for text in ASKED]
        seen[way] = {
            "before": before,
            "after": [_whose(server, answer, n) for n, answer in enumerate(after)],
            "off_by": [_off(answer, m.b, n) for n, answer in enumerate(after)],
        }
    hits = re.findall(r"(?m)^vllm:prefix_cache_hits_total\S* (\S+)", server.get("/metrics").text)
    wrong = [way for way, told in seen.items() if set(told["after"]) != {"new"}]
    verdict = f"wrong answers after: {'; '.join(wrong)}" if wrong else f"the new weights' answers, all {len(seen)} ways"
    return verdict, {**seen, "prefix_cache_hits_tokens": [float(hit) for hit in hits]}


def silently_ignored(server: Server) -> Finding:
    """Offer adapters that change nothing, and ask for a name that nobody knows."""
    seen: dict[str, Any] = {}
    for kind, folder in ineffective(server.material).items():
        for number, unchecked in enumerate(server.unchecked):
            name = f"ineffective-{len(seen)}-{number}"
            refused = server.offer(name, folder, unchecked=unchecked)
            answer = refused or _whose(server, server.ask(name, ASKED[0]), 0)
            seen[f"{kind}{', past the checks' if unchecked else ''}"] = answer
    seen["a name that nobody knows"] = _whose(server, server.ask("nobody-knows", ASKED[0]), 0)
    silent = [kind for kind, told in seen.items() if told == "base"]
    return f"the base model's answers, without a word: {'; '.join(silent)}" if silent else "every one refused", seen


def unload_frees(server: Server) -> Finding:
    """Load and unload one large adapter after the other."""
    sizes, large, last = [], server.material.large, ""
    sizes.append(server.memory() >> 20)
    for number, folder in enumerate(large, start=1):
        name = f"many-{number}" if isinstance(server, Stock) else "many"
        if refused := server.offer(name, folder):
            raise Failed(refused)
        reference = name if isinstance(server, Stock) else f"many@{number}"
        server.ask(reference, ASKED[0])
        if last:
            server.withdraw(last)
        last = reference
        if number % SLOTS == 0:
            sizes.append(server.memory() >> 20)
    listed = [reference for reference in server.known() if reference.startswith("many")]
    first = "many-1" if isinstance(server, Stock) else "many@1"
    after = server.ask(first, ASKED[0])
    seen = {"resident_mib": sizes, "listed": listed, "asked_after_unload": after}
    grown = sizes[-1] - sizes[1]
    answers = "refused" if isinstance(after, str) else "answered"
    return f"{len(large)} adapters: {grown:+d} MiB after the first {SLOTS}; the unloaded is {answers}", seen


def restart(server: Server) -> Finding:
    """Kill the server, start it again, ask."""
    _load_a(server, "kept")
    server.kill()
    server.start()
    answer = _whose(server, server.ask("kept", ASKED[0]), 0)
    known = "still there" if answer == "old" else "gone"
    return f"the adapter is {known}", {"answer": answer, "listed": server.known()}


def bad_adapters(server: Server) -> Finding:
    """Offer each, ask it where it was taken, and somebody else's adapter at the same time and afterwards."""
    _load_a(server, "neighbour")
    seen: dict[str, Any] = {}
    for kind, folder in bad(server.material).items():
        for unchecked in server.unchecked:
            name = f"bad-{len(seen)}"
            told: dict[str, Any] = {}
            try:
                told["offered"] = server.offer(name, folder, unchecked=unchecked) or "taken"
            except httpx.HTTPError as error:
                told["offered"] = type(error).__name__
            if told["offered"] == "taken":
                with ThreadPoolExecutor() as pool:
                    at_once = list(pool.map(server.ask, (name, "neighbour"), (ASKED[0], ASKED[1])))
                told["asked"] = _whose(server, at_once[0], 0)
                told["neighbour_meanwhile"] = _whose(server, at_once[1], 1)
            told["neighbour_afterwards"] = [_whose(server, server.ask("neighbour", t), n) for n, t in enumerate(ASKED)]
            told["code_was_run"] = server.material.marker.exists()
            if not server.ready():
                told["died"] = True
                server.kill()
                server.start()
                _load_a(server, "neighbour")
            seen[f"{kind}{', past the checks' if unchecked else ''}"] = told
    taken = [kind for kind, told in seen.items() if told["offered"] == "taken"]
    died = [kind for kind, told in seen.items() if told.get("died")]
    hurt = [kind for kind, told in seen.items() if set(told["neighbour_afterwards"]) != {"old"}]
    ran = any(told["code_was_run"] for told in seen.values())
    parts = [f"taken: {', '.join(taken) or 'none'}", f"died of: {', '.join(died) or 'none'}"]
    return "; ".join(
        [*parts, f"others hurt by: {', '.join(hurt) or 'none'}", f"code run: {'yes' if ran else 'no'}"]
    ), seen


def who_may_load(server: Server) -> Finding:
    """Start it with its keys: which doors ask for them? This is the last point: the server is another one then."""
    m, body = server.material, {"lora_name": "x", "lora_path": str(server.material.a.folder)}
    seen: dict[str, Any] = {}
    if isinstance(server, Stock):
        seen["no --api-key: load"] = server.offer("anyone", m.a.folder) or "200"
        server.stop()
        server.start("--api-key", "secret")
        closed = server.post("/v1/load_lora_adapter", body).status_code
        other = server.post("/adapters", {"name": "by-the-other-door", "src": str(m.a.folder)})
        seen["--api-key, none sent: /v1/load_lora_adapter"] = closed
        seen["--api-key, none sent: /adapters"] = other.status_code
        seen["--api-key, none sent: /invocations"] = server.post(
            "/invocations", {"model": "by-the-other-door", "prompt": "Hello", "max_tokens": 1}
        ).status_code
        seen["--api-key, sent: load"] = server.post("/v1/load_lora_adapter", body, "secret").status_code
        seen["--api-key, sent: ask"] = _whose(server, server.ask("x", ASKED[0], "secret"), 0)
        keyless = "anyone" if seen["no --api-key: load"] == "200" else "refused"
        door = f"/adapters without it {other.status_code}"
        return f"without --api-key: {keyless}; with it, /v1/… without a key {closed}, {door}", seen
    release = "/v1/adapters/neighbour/releases", {"stable": 1}
    seen["no keys, from this machine: release"] = server.post(*release).status_code
    server.stop()
    (ask, ask_line), (admin, admin_line) = new_key("scopes=predict"), new_key("scopes=predict,admin")
    (server.scratch / "keys").write_text(f"{ask_line}\n{admin_line}\n")
    try:
        server.start(HOTSWAP_HOST="0.0.0.0")  # noqa: S104 -- it is to be refused
        seen["no keys, beyond this machine"] = "started"
    except Failed as error:
        seen["no keys, beyond this machine"] = str(error)
    server.start(HOTSWAP_API_KEYS=str(server.scratch / "keys"))
    seen["keys, none sent: ask, release"] = [server.ask("neighbour", ASKED[0]), server.post(*release).status_code]
    seen["keys, one that may ask: ask"] = _whose(server, server.ask("neighbour", ASKED[0], ask), 0)
    seen["keys, one that may ask: release"] = server.post(*release, ask).status_code
    seen["keys, admin: release"] = server.post(*release, admin).status_code
    for path in ("/adapters", "/v1/load_lora_adapter"):
        seen[f"keys, none sent: {path}"] = server.post(path, body).status_code
    statuses = (seen["keys, none sent: ask, release"][1], seen["keys, one that may ask: release"])
    admin_may = seen["keys, admin: release"]
    beyond = "started" if seen["no keys, beyond this machine"] == "started" else "does not start"
    told = f"without keys beyond this machine: {beyond}; with keys a release needs one (401) with the scope (403)"
    expected = (statuses, admin_may) == ((401, 403), 201)
    return told if expected else f"with keys, releases were answered with {statuses} and {admin_may}", seen


def any_folder(server: Server) -> Finding:
    """Name folders of the machine that nobody meant to serve."""
    m = server.material
    outside = Path(m.a.folder.parent, "..", "variants", m.a.folder.name)
    paths = {"another folder, by ..": outside, "/etc": Path("/etc"), "missing": Path("/etc/missing")}
    ours = isinstance(server, Ours)
    seen: dict[str, Any] = {
        f"load {kind}": _status(server, "/v1/load_lora_adapter", {"lora_name": f"path-{n}", "lora_path": str(path)})
        for n, (kind, path) in enumerate(paths.items())
    }
    if ours:
        seen["ask ../../etc"] = server.ask("../../etc", ASKED[0])
        for name in ("..%2f..%2fetc", "neighbour"):
            body = {"stable": 1, "lora_path": str(outside)}
            seen[f"release {name} with a path"] = _status(server, f"/v1/adapters/{name}/releases", body)
    taken = [kind for kind, told in seen.items() if str(told).startswith("20")]
    return f"taken: {', '.join(taken)}" if taken else "no request can name a path", seen


def metrics_by_adapter(server: Server) -> Finding:
    """Ask an adapter, and look for its name in the metrics."""
    _load_a(server, "counted")
    for text in ASKED:
        server.ask("counted", text)
    lines = [line for line in server.get("/metrics").text.splitlines() if '"counted' in line]
    families = sorted({re.sub(r"_(bucket|created|sum|count)$", "", line.partition("{")[0]) for line in lines})
    versions = any('version="' in line for line in lines)
    told = f"{len(families)} metrics name it{', with its version' if versions else ''}" if families else "none names it"
    return told, {"families": families, "example": lines[:2]}


POINTS: dict[str, Callable[[Server], Finding]] = {
    "stale answers after a reload": stale_answers,
    "silently ignored adapters": silently_ignored,
    "loading from any folder": any_folder,
    "no metrics by adapter": metrics_by_adapter,
    "unload does not free": unload_frees,
    "bad adapters": bad_adapters,
    "state lost on restart": restart,
    "anyone may load": who_may_load,
}


def _load_a(server: Server, name: str) -> None:
    if refused := server.offer(name, server.material.a.folder):
        raise Failed(refused)


def _status(server: Server, path: str, body: dict[str, Any]) -> str:
    answer = server.post(path, body)
    return f"{answer.status_code} {answer.text[:120]}"


def _off(answer: Scores | str, known: Known, number: int) -> float | None:
    return None if isinstance(answer, str) else round(distance(answer, known.scores[number]), 5)


def _whose(server: Server, answer: Scores | str, number: int) -> str:
    """Return whose answer to that text it is: the old weights', the new ones', the base's, or nobody's."""
    if isinstance(answer, str):
        return answer
    m = server.material
    for who, scores in (("old", m.a.scores), ("new", m.b.scores), ("base", m.plain)):
        if distance(answer, scores[number]) < TOLERANCE:
            return who
    return "nobody's"
