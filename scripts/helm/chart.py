"""Write the Helm chart's templates and schema from what Kustomize builds of k8s/.   python -m scripts.helm.chart

k8s/base and k8s/components are the source. Each component is a switch of the chart: what it changes stands under that
condition. What an overlay of one's own would patch is a value. ``values.yaml``, ``_helpers.tpl``, ``checks.yaml`` and
``NOTES.txt`` are written by hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from scripts.helm.template import MISSING, Code, Either, Rest, Tree, all_of, any_of, merged, put, scalars, text
from scripts.helm.values import (
    DEFINED,
    FULLNAME,
    GUARDS,
    PARTS,
    PLACES,
    SCALARS,
    SWITCHES,
    TRAINING,
    code,
    schema,
)

K8S = Path(__file__).parents[2] / "k8s"
CHART = K8S / "chart"
MADE = "{{- /* Written by make chart, from k8s/base and k8s/components. */ -}}\n"
Key = tuple[str, str]  # kind and name


@cache
def built(components: frozenset[str], folder: str = "base") -> dict[Key, dict]:
    """Return what Kustomize makes of ``folder`` with the components, hashes taken off generated names."""
    with tempfile.TemporaryDirectory() as scratch:
        parts = {
            "resources": [K8S / folder],
            "components": [K8S / "components" / each for each in SWITCHES if each in components],
        }
        listed = {kind: [os.path.relpath(part, scratch) for part in parts[kind]] for kind in parts}
        (Path(scratch) / "kustomization.yaml").write_text(yaml.safe_dump(listed))
        done = subprocess.run(["kubectl", "kustomize", scratch], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"kubectl kustomize {sorted(components)}: {done.stderr}")
    plain = done.stdout
    for each in yaml.safe_load_all(done.stdout):
        name = each["metadata"]["name"]
        if each["kind"] in ("ConfigMap", "Secret") and folder != "monitoring":
            plain = plain.replace(name, name.rpartition("-")[0])
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(plain)}


def resources() -> dict[Key, tuple[list[str], Tree]]:
    """Return each resource with the conditions under which it is there, and with what each switch changes in it."""
    if unknown := {path.name for path in (K8S / "components").iterdir()} ^ SWITCHES.keys():
        raise RuntimeError(f"components without a switch, or the other way round: {sorted(unknown)}")
    base, training = built(frozenset()), built(TRAINING)
    singles = {name: built(frozenset({name})) for name in SWITCHES}
    names = {name for each in singles.values() for _, name in each}

    def variants(of: dict[Key, dict], key: Key, others: dict[str, dict[Key, dict]]) -> Tree:
        changed = {SWITCHES[name]: templated(other.get(key, MISSING), names, key) for name, other in others.items()}
        return merged(templated(of[key], names, key), changed)

    beside = {name: built(TRAINING | {name}) for name in SWITCHES if name not in TRAINING}
    found = {key: ([], variants(base, key, singles)) for key in base}
    found |= {key: ([], variants(training, key, beside)) for key in training if key not in base}
    for name, having in singles.items():
        for key in [key for key in having if key not in base]:
            conditions, tree = found.get(key, ([], templated(having[key], names, key)))
            found[key] = (
                [*conditions, SWITCHES[name]],
                merged(tree, {SWITCHES[name]: templated(having[key], names, key)}) if conditions else tree,
            )
    for key, resource in built(frozenset(), "monitoring").items():
        found[key] = ([], templated(resource, names | {key[1]}, key))
    return found


def templated(tree: Tree, names: set[str], key: Key) -> Tree:
    """Return ``tree`` with names and what is somebody's own as the chart has it."""
    if tree is MISSING:
        return tree
    metadata = {**tree["metadata"], "name": _name(tree["metadata"]["name"], "name", names, key)}
    metadata["labels"] = _labels(tree["metadata"].get("labels", {}), own=True)
    first = {"apiVersion": tree["apiVersion"], "kind": tree["kind"], "metadata": metadata}
    return first | {k: _walk(v, k, names, key) for k, v in tree.items() if k not in first}


def _walk(tree: Tree, parent: str, names: set[str], key: Key) -> Tree:
    if isinstance(tree, dict):
        if any(each.startswith("app.kubernetes.io/") for each in tree):
            return _labels(tree)
        return {
            k: code(".Values.gpu.count | quote")
            if k == "nvidia.com/gpu"
            else _walk(v, k if k != "name" else parent, names, key)
            for k, v in tree.items()
        }
    if isinstance(tree, list):
        return [_walk(each, parent, names, key) for each in tree]
    return _name(tree, parent, names, key) if isinstance(tree, str) else tree


def _name(value: str, parent: str, names: set[str], key: Key) -> str:
    if value == "hotswap" and (parent == "serviceAccountName" or key[0] == "ServiceAccount"):
        return code('include "hotswap.serviceAccount" .')
    if value == "hotswap" and parent == "claimName":
        return code('.Values.storage.existingClaim | default (include "hotswap.fullname" .)')
    if value == "hotswap-jobs" and parent == "secretKeyRef":
        return code(".Values.jobs.existingSecret")
    if value in SCALARS:
        return Code(SCALARS[value])
    if value in names and parent != "containers":
        return Code(value.replace("hotswap", FULLNAME, 1))
    escaped = value.replace("{{", '{{ "{{" }}')
    for part, instead in PARTS.items():
        escaped = escaped.replace(part, instead)
    return Code(escaped) if escaped != value else value


def _labels(labels: dict[str, str], own: bool = False) -> dict[Any, Tree]:
    """Return labels of the release: two of them may be in one namespace."""
    name = "app.kubernetes.io/name"
    changed: dict[Any, Tree] = dict(labels)
    if name in labels:
        changed[name] = Code(labels[name].replace("hotswap", '{{ include "hotswap.name" . }}', 1))
    if own:
        return {**changed, Rest('include "hotswap.labels" .', always=True): MISSING}
    return {**changed, "app.kubernetes.io/instance": code(".Release.Name")}


def with_checksums(tree: Tree, generated: list[Key]) -> Tree:
    """As Kustomize's hashes do: a change of a ConfigMap or Secret of ours is a rollout of who has it."""
    if tree["kind"] != "Deployment":
        return tree
    used = set(scalars(tree["spec"]["template"]["spec"]))
    sums = {
        f"checksum/{file_name(key).removesuffix('.yaml')}": code(
            f'include (print $.Template.BasePath "/{file_name(key)}") . | sha256sum'
        )
        for key in generated
        if SCALARS.get(key[1], key[1].replace("hotswap", FULLNAME, 1)) in used
    }
    return put(tree, "spec/template/metadata/annotations", lambda old: sums if old is MISSING else old | sums)


def file_name(key: Key) -> str:
    kind, name = key
    rest = re.sub("^hotswap-?", "", name)
    return f"{rest}-{kind.lower()}.yaml" if rest else f"{kind.lower()}.yaml"


def files() -> dict[Path, str]:
    """Return what there is to be written."""
    known, made, definitions = resources(), {}, ""
    generated = sorted(key for key in known if key[0] in ("ConfigMap", "Secret"))
    if unused := (PLACES.keys() | GUARDS.keys()) - {"/".join(key) for key in known}:
        raise RuntimeError(f"no such resources any more: {sorted(unused)}")
    for key, (conditions, tree) in known.items():
        place = "/".join(key)
        tree, gone = _presence(tree)
        tree = with_checksums(tree, generated)
        for path, value in PLACES.get(place, {}).items():
            tree = put(tree, path, value)
        if place in DEFINED:
            part, name, instead = DEFINED[place]
            definitions += f'{{{{- define "{name}" -}}}}\n{text(tree[part])}{{{{- end }}}}\n'
            tree = {**tree, part: {Rest(instead, always=True): MISSING}}
        guards = [any_of(conditions)] if conditions else []
        guards += [f"not ({each})" for each in gone] + ([GUARDS[place]] if place in GUARDS else [])
        body = text(tree)
        guarded = f"{{{{- if {all_of(guards)} }}}}\n{body}{{{{- end }}}}\n" if guards else body
        made[CHART / "templates" / file_name(key)] = MADE + guarded
    made[CHART / "templates" / "_made.tpl"] = MADE + definitions
    whole = "".join(made.values())
    if unused := {value for value in (*SCALARS.values(), *PARTS.values()) if value not in whole}:
        raise RuntimeError(f"nothing that these stand for is in the manifests any more: {sorted(unused)}")
    made[CHART / "values.schema.json"] = (
        json.dumps(schema(yaml.safe_load((CHART / "values.yaml").read_text())), indent=1) + "\n"
    )
    return made


def _presence(tree: Tree) -> tuple[Tree, list[str]]:
    """Return the resource where it is there, and the conditions under which it is not."""
    if not isinstance(tree, Either):
        return tree, []
    gone = [condition for condition, value in tree.branches if value is MISSING]
    return merged(tree.otherwise, {c: value for c, value in tree.branches if value is not MISSING}), gone


def main() -> None:
    made = files()
    for old in (CHART / "templates").glob("*"):
        if old not in made and old.read_text().startswith(MADE):
            old.unlink()
    for path, content in made.items():
        path.write_text(content)


if __name__ == "__main__":
    main()
