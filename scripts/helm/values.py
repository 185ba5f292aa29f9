"""What of the manifests is a switch or a value of the chart, and what values may be."""

from __future__ import annotations

from typing import Any

from scripts.helm.template import MISSING, Block, Code, Either, Rest, Tree, merged, put
from service.settings import PREFIX, Settings

# The condition of each component, in the order in which they are applied.
SWITCHES = {
    "jobs": ".Values.jobs.enabled",
    "jobs-volume": ".Values.jobs.volume.enabled",
    "train": ".Values.train.enabled",
    "retrain": ".Values.retrain.enabled",
    "s3": ".Values.s3.enabled",
    "base-from-hub": 'eq .Values.baseModel.from "hub"',
    "base-from-image": 'eq .Values.baseModel.from "image"',
    "base-from-s3": 'eq .Values.baseModel.from "s3"',
    "envoy": 'eq .Values.router "envoy"',
    "nginx": 'eq .Values.router "nginx"',
    "gateway": ".Values.gateway.enabled",
    "operator": ".Values.monitoring.operator",
    "external-secret": ".Values.externalSecret.enabled",
    "hpa": ".Values.hpa.enabled",
    "keda": ".Values.keda.enabled",
    "spread": ".Values.spread.enabled",
    "gpu": ".Values.gpu.enabled",
}
# What these add, other components change.
TRAINING = frozenset({"jobs", "train", "retrain"})
FULLNAME = '{{ include "hotswap.fullname" . }}'
KEPT_TOGETHER = 'or .Values.s3.enabled (ne .Values.storage.accessMode "ReadWriteOnce")'

# Scalars that are somebody's own, wherever they stand.
SCALARS = {
    "hotswap:cpu": '{{ include "hotswap.image" . | quote }}',
    "hotswap:gpu": '{{ include "hotswap.image" . | quote }}',
    "hotswap-trainer:cpu": '{{ printf "%s:%s" .Values.trainer.image.repository .Values.trainer.image.tag | quote }}',
    "hotswap-feedback": "{{ .Values.feedback.existingSecret }}",
    "hotswap-s3": "{{ .Values.s3.existingSecret }}",
    "hotswap-hub": "{{ .Values.baseModel.existingSecret }}",
    "hotswap-recipe": "{{ .Values.train.recipe }}",
    "hotswap-api-keys": '{{ include "hotswap.apiKeys" . }}',
    "s3://hotswap/adapters": "{{ .Values.s3.store | quote }}",
    "s3://hotswap/base": "{{ .Values.baseModel.uri | quote }}",
    "Qwen/Qwen3-0.6B": "{{ .Values.baseModel.model | quote }}",
    "registry.example.com/base:1": "{{ .Values.baseModel.image | quote }}",
    "http://prometheus.monitoring.svc:9090": "{{ .Values.keda.prometheus | quote }}",
    "hotswap/api-keys": "{{ .Values.externalSecret.key | quote }}",
    'sum(hotswap_waiting{namespace="hotswap", pod=~"hotswap-[^-]+-[^-]+"})': (
        '{{ printf "sum(hotswap_waiting{namespace=%q, pod=~%q})" .Release.Namespace'
        ' (printf "%s-[^-]+-[^-]+" (include "hotswap.fullname" .)) | quote }}'
    ),
}
# The same within longer ones.
PARTS = {
    "--pool-name=hotswap": f"--pool-name={FULLNAME}",
    "address: hotswap-pods": f"address: {FULLNAME}-pods",
    "server hotswap-pods.": f"server {FULLNAME}-pods.",
    "310s": '{{ include "hotswap.routerSeconds" . }}s',
    "_size 2000000;": '_size {{ include "hotswap.bodyBytes" . }};',
    "per_connection_buffer_limit_bytes: 8388608": (
        'per_connection_buffer_limit_bytes: {{ max 8388608 (include "hotswap.bodyBytes" . | int64) }}'
    ),
}
# Whole resources that may be somebody else's, or are not wanted.
GUARDS = {
    "ServiceAccount/hotswap": ".Values.serviceAccount.create",
    "Secret/hotswap-api-keys": "not .Values.apiKeys.existingSecret",
    "PersistentVolumeClaim/hotswap": "not .Values.storage.existingClaim",
    "PodDisruptionBudget/hotswap": ".Values.podDisruptionBudget.enabled",
    "NetworkPolicy/hotswap": ".Values.networkPolicy.enabled",
    "NetworkPolicy/hotswap-router": ".Values.networkPolicy.enabled",
    "NetworkPolicy/hotswap-picker": ".Values.networkPolicy.enabled",
    "NetworkPolicy/hotswap-metrics-for-picker": ".Values.networkPolicy.enabled",
    "ConfigMap/hotswap-dashboards": ".Values.monitoring.dashboards",
    "ConfigMap/hotswap-rules": ".Values.monitoring.ruleFiles",
}
TRAINERS = {"Deployment/hotswap-jobs": "", "Job/hotswap-train": "", "CronJob/hotswap-retrain": "jobTemplate/spec/"}


def given(value: str) -> Any:
    """What the value says, or what was there where it says nothing."""
    return lambda old: Either(((f".Values.{value}", Block(f".Values.{value}")),), old)


def scalar(value: str) -> Any:
    """As above."""
    return lambda old: Either(((f".Values.{value}", Code(f"{{{{ .Values.{value} | quote }}}}")),), old)


def also(value: str) -> Any:
    """What was there, and what the value adds."""
    rest = Rest(f".Values.{value}")

    def added(old: Tree) -> Tree:
        if old is MISSING:
            return Either(((rest.expression, Block(rest.expression)),), MISSING)
        if isinstance(old, dict):
            return {**old, rest: MISSING}
        if isinstance(old, Either):
            there = {condition: [] if tree is MISSING else tree for condition, tree in old.branches}
            old = merged([] if old.otherwise is MISSING else old.otherwise, there)
        return [*(unless_given(item) for item in old), rest]

    def unless_given(item: Tree) -> Tree:
        """What the value has under the same name stands instead: of two Kubernetes refuses both, or takes the last."""
        if isinstance(item, Either):
            branches = tuple((when, unless_given(tree)) for when, tree in item.branches)
            return Either(branches, unless_given(item.otherwise))
        if not isinstance(item, dict) or "name" not in item or "mountPath" in item:
            return item
        return Either(((f'include "hotswap.named" (list {rest.expression} "{item["name"]}")', MISSING),), item)

    return added


def code(expression: str) -> Code:
    return Code(f"{{{{ {expression} }}}}")


def alone(value: str) -> Either:
    """The value where it says something, and nothing otherwise."""
    return Either(((f".Values.{value}", code(f".Values.{value} | quote")),), MISSING)


def together(old: Tree) -> Tree:
    """Pods stay where the claim is mounted, unless any node can mount it or there is none."""
    rule = old.otherwise if isinstance(old, Either) else old
    return Either(((KEPT_TOGETHER, MISSING),), rule)


PULL = alone("image.pullPolicy")
POD = "spec/template/spec"
SERVICE = f"{POD}/containers/service"
# What values change at a place: a value, or a function of what was there.
PLACES: dict[str, dict[str, Tree]] = {
    "ServiceAccount/hotswap": {"metadata/annotations": also("serviceAccount.annotations")},
    "Deployment/hotswap": {
        "spec/replicas": lambda old: Either(old.branches, code(".Values.replicas")),
        "spec/template/metadata/annotations": also("podAnnotations"),
        "spec/template/metadata/labels": also("podLabels"),
        f"{POD}/imagePullSecrets": also("imagePullSecrets"),
        f"{POD}/nodeSelector": also("nodeSelector"),
        f"{POD}/tolerations": also("tolerations"),
        f"{POD}/priorityClassName": alone("priorityClassName"),
        f"{POD}/affinity": lambda old: Either(
            ((".Values.affinity", Block(".Values.affinity")), *together(old).branches), together(old).otherwise
        ),
        f"{POD}/terminationGracePeriodSeconds": code('include "hotswap.graceSeconds" .'),
        f"{POD}/initContainers": lambda old: Either(
            tuple(
                (when, put(tree, "0/imagePullPolicy", PULL) if '"hub"' in when else tree) for when, tree in old.branches
            ),
            old.otherwise,
        ),
        f"{SERVICE}/imagePullPolicy": PULL,
        f"{SERVICE}/resources": given("resources"),
        f"{SERVICE}/env": also("extraEnv"),
        f"{SERVICE}/envFrom": also("extraEnvFrom"),
        f"{SERVICE}/volumeMounts": also("extraVolumeMounts"),
        f"{POD}/volumes": also("extraVolumes"),
    },
    "Service/hotswap": {
        "metadata/annotations": also("service.annotations"),
        "spec/type": Either((('ne .Values.service.type "ClusterIP"', code(".Values.service.type")),), MISSING),
        "spec/ports/http/port": code(".Values.service.port"),
    },
    "PersistentVolumeClaim/hotswap": {
        "spec/accessModes": [code(".Values.storage.accessMode")],
        "spec/resources/requests/storage": scalar("storage.size"),
        "spec/storageClassName": alone("storage.storageClass"),
    },
    "PersistentVolumeClaim/hotswap-jobs": {
        "spec/resources/requests/storage": code(".Values.jobs.volume.size | quote"),
        "spec/storageClassName": alone("jobs.volume.storageClass"),
    },
    "Secret/hotswap-api-keys": {"data/api-keys": code(".Values.apiKeys.content | b64enc | quote")},
    "NetworkPolicy/hotswap": {
        "spec/ingress": also("networkPolicy.ingress"),
        "spec/ingress/1/from/0/namespaceSelector/matchLabels/kubernetes.io~metadata.name": code(
            ".Values.monitoring.namespace | quote"
        ),
        "spec/egress": also("networkPolicy.egress"),
    },
    "HorizontalPodAutoscaler/hotswap": {
        "spec/minReplicas": code(".Values.hpa.minReplicas"),
        "spec/maxReplicas": code(".Values.hpa.maxReplicas"),
        "spec/metrics/0/pods/target/averageValue": code(".Values.hpa.waiting | quote"),
    },
    "ScaledObject/hotswap": {
        "spec/minReplicaCount": code(".Values.keda.minReplicas"),
        "spec/maxReplicaCount": code(".Values.keda.maxReplicas"),
        "spec/triggers/0/metadata/threshold": code(".Values.keda.waiting | quote"),
    },
    "HTTPRoute/hotswap": {
        "spec/parentRefs": [{"name": code(".Values.gateway.name | quote"), "namespace": alone("gateway.namespace")}],
        "spec/hostnames": also("gateway.hostnames"),
        "spec/rules/1/backendRefs/0/port": code(".Values.service.port"),
    },
    "RoleBinding/hotswap-picker": {"subjects/0/namespace": code(".Release.Namespace")},
    "ExternalSecret/hotswap-api-keys": {
        "spec/secretStoreRef/kind": code(".Values.externalSecret.storeKind"),
        "spec/secretStoreRef/name": code(".Values.externalSecret.store | quote"),
    },
    "PrometheusRule/hotswap": {"spec/groups": [Rest('include "hotswap.rules" .', always=True)]},
    "ConfigMap/hotswap-dashboards": {
        "data": {
            Rest('include "hotswap.files" (dict "Files" .Files "glob" "files/dashboards/*")', always=True): MISSING
        }
    },
    "ConfigMap/hotswap-rules": {
        "data": {Rest('include "hotswap.files" (dict "Files" .Files "glob" "files/rules/*")', always=True): MISSING}
    },
    "CronJob/hotswap-retrain": {
        "spec/schedule": code(".Values.retrain.schedule | quote"),
        "spec/jobTemplate/spec/template/spec/containers/trainer/args": Block(".Values.retrain.args"),
    },
    "Deployment/hotswap-router": {
        "spec/replicas": code(".Values.routerReplicas"),
        f"{POD}/imagePullSecrets": also("imagePullSecrets"),
    },
    "Deployment/hotswap-picker": {f"{POD}/imagePullSecrets": also("imagePullSecrets")},
}
PLACES["Job/hotswap-train"] = {
    # What a Job is to do cannot be changed: one that is to do something else is another one.
    "metadata/name": Code(f'{FULLNAME}-train-{{{{ include "hotswap.train" . | sha256sum | trunc 8 }}}}')
}
# Parts that other templates use too: where they are, what they are called, and what stands in their place.
DEFINED = {
    "ConfigMap/hotswap": ("data", "hotswap.settings", 'include "hotswap.data" .'),
    "Job/hotswap-train": ("spec", "hotswap.train", 'include "hotswap.train" .'),
}
for _key, _prefix in TRAINERS.items():
    _pod = f"spec/{_prefix}template/spec"
    PLACES.setdefault(_key, {}).update(
        {
            f"{_pod}/imagePullSecrets": also("imagePullSecrets"),
            f"{_pod}/nodeSelector": also("trainer.nodeSelector"),
            f"{_pod}/tolerations": also("trainer.tolerations"),
            f"{_pod}/affinity": together,
            f"{_pod}/containers/trainer/imagePullPolicy": PULL,
            f"{_pod}/containers/trainer/resources": given("trainer.resources"),
            f"{_pod}/containers/trainer/env": also("trainer.extraEnv"),
        }
    )


SECRET = {"pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"}
RULES: dict[str, dict[str, Any]] = {
    "image.pullPolicy": {"enum": ["", "Always", "IfNotPresent", "Never"]},
    "image.repository": {"minLength": 1},
    "trainer.image.repository": {"minLength": 1},
    "trainer.image.tag": {"minLength": 1},
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "service.port": {"minimum": 1, "maximum": 65535},
    "storage.accessMode": {"enum": ["ReadWriteOnce", "ReadWriteMany"]},
    "storage.size": {"pattern": r"^([0-9]+(\.[0-9]+)?([KMGTPE]i?)?)?$"},
    "jobs.volume.size": {"pattern": r"^[0-9]+(\.[0-9]+)?([KMGTPE]i?)?$"},
    "s3.store": {"pattern": "^((s3|gs)://.+)?$"},
    "s3.existingSecret": SECRET,
    "feedback.existingSecret": SECRET,
    "jobs.existingSecret": SECRET,
    "train.recipe": SECRET,
    "baseModel.existingSecret": SECRET,
    "baseModel.from": {"enum": ["", "hub", "s3", "image"]},
    "baseModel.uri": {"pattern": "^(s3://.+)?$"},
    "gateway.name": SECRET,
    "externalSecret.storeKind": {"enum": ["ClusterSecretStore", "SecretStore"]},
    "externalSecret.store": SECRET,
    "externalSecret.key": {"minLength": 1},
    "router": {"enum": ["", "envoy", "nginx"]},
    "gpu.count": {"minimum": 1},
    "hpa.minReplicas": {"minimum": 1},
    "hpa.maxReplicas": {"minimum": 1},
    "hpa.waiting": {"minimum": 1},
    "keda.maxReplicas": {"minimum": 1},
    "keda.waiting": {"minimum": 1},
}
# The chart's Service, probes and policies go by these.
OURS = ("host", "port", "metrics_port")


def schema(values: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of values like these: their types, our rules, and every setting of the server."""
    rules = dict(RULES)
    described = _described(values, "", rules)
    if rules:
        raise RuntimeError(f"rules for values that are not there: {sorted(rules)}")
    described["properties"]["settings"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            f"{PREFIX}{name.upper()}": {"type": ["string", "number", "boolean"], "description": field.description}
            for name, field in Settings.model_fields.items()
            if name not in OURS
        },
    }
    described["required"].append("settings")
    described["properties"]["global"] = {"type": "object"}
    return {"$schema": "https://json-schema.org/draft-07/schema#", **described}


def _described(value: Any, path: str, rules: dict[str, dict[str, Any]]) -> dict[str, Any]:
    kinds = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    described: dict[str, Any] = {"type": kinds[type(value)], **rules.pop(path, {})}
    if isinstance(value, bool):
        return described
    if isinstance(value, int):
        return {"minimum": 0, **described}
    if isinstance(value, dict) and value:
        inner = {key: _described(each, f"{path}.{key}".lstrip("."), rules) for key, each in value.items()}
        # What is null is taken away: templates look into these.
        needed = [key for key, each in value.items() if isinstance(each, dict) and each]
        described |= {"additionalProperties": False, "properties": inner, "required": needed}
    return described
