"""Real, human-made data that this project knows how to fetch. Nothing of it is shipped.

Each source yields ``{"text", "label" or "summary" or "answer", "group"}``; rows of one group are near-copies of each
other and must not be split between training and test.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from adapters.errors import HotswapError
from adapters.packages import fetch_package

Rows = Iterator[dict[str, str]]

VADER = ("vadersentiment==3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9")
LICENSEDCODE = ("licensedcode-data==32.1.0", "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96")
SECTIONS = 40
CONTROL_FIELDS = ("Package", "Version", "Installed-Size", "Architecture", "Depends", "Section", "Priority")
MOST_NEEDED, MOST_CONTROL_CHARS = 8, 600
LICENCE_CATEGORIES = ("Permissive", "Proprietary Free", "Copyleft Limited", "Copyleft", "Commercial")


def fetch_rows(source: str, cache: Path) -> list[dict[str, str]]:
    """Return the rows of a known source. Raises :class:`HotswapError` for an unknown one."""
    if source not in SOURCES:
        raise HotswapError(f"data.source '{source}' is unknown; known: {', '.join(sorted(SOURCES))}.")
    return list(SOURCES[source](cache))


def vader_movies(cache: Path) -> Rows:
    """Movie review snippets rated by 20 people each (Hutto & Gilbert 2014), where the mean is at least ±1."""
    return _vader("movieReviewSnippets", cache)


def vader_amazon(cache: Path) -> Rows:
    """Sentences of product reviews, rated in the same way."""
    return _vader("amazonReviewSnippets", cache)


def vader_tweets(cache: Path) -> Rows:
    """Tweets, rated in the same way."""
    return _vader("tweets", cache)


def vader_news(cache: Path) -> Rows:
    """Sentences of a newspaper's editorials, rated in the same way."""
    return _vader("nytEditorialSnippets", cache)


def _vader(name: str, cache: Path) -> Rows:
    archive = fetch_package(*VADER, cache)
    with tarfile.open(archive) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None, "the archive's hash is pinned"
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as tar:
            table = tar.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            assert table is not None, "the archive's hash is pinned"
            lines = table.read().decode("utf-8").splitlines()
    for line in lines:
        _, rating, text = line.split("\t")
        if abs(float(rating)) < 1:
            continue
        # Quotations of one review begin alike, and so do copies with a different end.
        group = " ".join(re.findall(r"[a-z0-9]+", text.lower())[:5])
        yield {"text": text, "label": "positive" if float(rating) > 0 else "negative", "group": group}


def debian_synopses(cache: Path) -> Rows:
    """Package descriptions and the synopsis their maintainers wrote: one per source package, 25–120 words."""
    for source, package in _debian_packages(cache):
        if 25 <= len(package.text.split()) <= 120 and len(package.synopsis.split()) >= 3:
            yield {"text": package.text, "summary": package.synopsis, "group": source}


def debian_sections(cache: Path) -> Rows:
    """Package descriptions, synopsis first, and the section they are filed under: the 40 largest, one per source
    package."""
    found = _debian_packages(cache)
    largest = {name for name, _ in Counter(package.section for _, package in found).most_common(SECTIONS)}
    for source, package in found:
        if package.section in largest:
            yield {"text": f"{package.synopsis}. {package.text}", "label": package.section, "group": source}


def debian_control(cache: Path) -> Rows:
    """Entries of Debian's package index, as apt prints them, and what they say as JSON: name, version, section, size in
    KiB, and the packages needed, without versions and alternatives. One of each source package."""
    packages, _ = _apt_lists(cache / "apt")
    seen = set()
    for paragraph in packages.split("\n\n"):
        said: dict[str, str] = dict(re.findall(r"^(\S+): (.+)$", paragraph, re.MULTILINE))
        source = said.get("Source", said.get("Package", "")).split(" ")[0]
        if source in seen or not {*CONTROL_FIELDS} <= {*said}:
            continue
        seen.add(source)
        needed = [str(re.split(r"[ (|:]", each.strip())[0]) for each in said["Depends"].split(",")]
        facts = {
            "package": said["Package"],
            "version": said["Version"],
            "section": said["Section"].rpartition("/")[2],
            "installed_kib": int(said["Installed-Size"]),
            "depends": list(dict.fromkeys(needed)),
        }
        text = "\n".join(f"{name}: {said[name]}" for name in CONTROL_FIELDS)
        if len(needed) <= MOST_NEEDED and len(text) <= MOST_CONTROL_CHARS:
            yield {"text": text, "answer": json.dumps(facts), "group": source}


class _Package(NamedTuple):
    synopsis: str
    text: str
    section: str


def _debian_packages(cache: Path) -> list[tuple[str, _Package]]:
    """Return a package of each source package of the release, by name: that of the same name, if there is one."""
    packages, translations = _apt_lists(cache / "apt")
    about = {}
    for paragraph in packages.split("\n\n"):
        if name := re.match(r"Package: (\S+)", paragraph):
            built_from = re.search(r"^Source: (\S+)", paragraph, re.MULTILINE)
            filed = re.search(r"^Section: (?:\S+/)?(\S+)", paragraph, re.MULTILINE)
            about[name[1]] = built_from[1] if built_from else name[1], filed[1] if filed else "unknown"
    chosen: dict[str, tuple[str, _Package]] = {}
    pattern = re.compile(r"Package: (\S+)\nDescription-md5: \S+\nDescription-en: (.*)\n([\s\S]*)")
    for paragraph in translations.split("\n\n"):
        if not (entry := pattern.match(paragraph)) or entry[1] not in about:
            continue
        source, section = about[entry[1]]
        if source not in chosen or entry[1] == source:
            chosen[source] = entry[1], _Package(entry[2], _unwrap(entry[3]), section)
    return [(source, package) for source, (_, package) in sorted(chosen.items())]


def _unwrap(description: str) -> str:
    """Join the lines of a Debian description's paragraphs; `` .`` separates paragraphs, deeper lines are lists."""
    text = ""
    for line in description.rstrip().split("\n"):
        if line == " .":
            text += "\n"
        elif line.startswith("  ") or text.endswith("\n") or not text:
            text += ("\n" if text and not text.endswith("\n") else "") + line.strip()
        else:
            text += " " + line.strip()
    return text


def _apt_lists(folder: Path) -> tuple[str, str]:
    """Return Debian's package index and English descriptions, fetched by apt into folders of its own."""
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    if not list(lists.glob("*_main_i18n_Translation-en*")):
        options = [f"Dir::State::Lists={lists}", f"Dir::Cache={folder / 'cache'}", "Acquire::Languages=en"]
        command = ["apt-get", "update", *(f"-o{option}" for option in options)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise HotswapError("this source needs apt-get: run it on Debian or Ubuntu.") from None
        if done.returncode != 0:
            raise HotswapError(f"apt-get update failed: {done.stderr.strip().splitlines()[-1:]}")
    return _largest(lists, "*_main_binary-*_Packages*"), _largest(lists, "*_main_i18n_Translation-en*")


def _largest(lists: Path, pattern: str) -> str:
    """Return the content of the suite's main list: updates and security lists are smaller."""
    found = sorted(lists.glob(pattern), key=lambda path: path.stat().st_size)
    if not found:
        raise HotswapError("apt's sources list no Debian 'main' with English descriptions.")
    reading = ["/usr/lib/apt/apt-helper", "cat-file", str(found[-1])]
    return subprocess.run(reading, capture_output=True, text=True, check=True).stdout


def licence_texts(cache: Path) -> Rows:
    """Licence texts and what ScanCode's editors file them under: the five largest categories."""
    archive = fetch_package(*LICENSEDCODE, cache)
    with zipfile.ZipFile(archive) as wheel:
        names = [n for n in wheel.namelist() if re.fullmatch(r"licensedcode/data/licenses/[^/]+\.LICENSE", n)]
        documents = [wheel.read(name).decode() for name in sorted(names)]
    for document in documents:
        parts = re.fullmatch(r"---\n(.*?)\n---\n?(.*)", document, re.DOTALL)
        if parts is None:
            continue
        about, text = yaml.safe_load(parts[1]), parts[2]
        if about.get("category") in LICENCE_CATEGORIES and len(text.split()) >= 20:
            # "gpl-2.0-plus" and "gpl-1.0" are one family: the same text with a few words changed.
            family = about["key"].split("-")[0].rstrip("0123456789.") or about["key"]
            yield {"text": text.strip(), "label": about["category"], "group": family}


SOURCES: dict[str, Callable[[Path], Rows]] = {
    "vader-movies": vader_movies,
    "vader-amazon": vader_amazon,
    "vader-tweets": vader_tweets,
    "vader-news": vader_news,
    "debian-synopses": debian_synopses,
    "debian-sections": debian_sections,
    "debian-control": debian_control,
    "licence-texts": licence_texts,
}
