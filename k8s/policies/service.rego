# What must hold of everything that k8s/ builds; tests/deploy/test_kustomize.py asks it of each resource.
package hotswap

import rego.v1

pods contains spec if {
	input.kind in {"Deployment", "Job"}
	spec := input.spec.template.spec
}

pods contains spec if {
	input.kind == "CronJob"
	spec := input.spec.jobTemplate.spec.template.spec
}

containers contains container if {
	some pod in pods
	some list in [pod.containers, object.get(pod, "initContainers", [])]
	some container in list
}

deny contains sprintf("%s: %s may become root", [input.metadata.name, container.name]) if {
	some container in containers
	not container.securityContext.allowPrivilegeEscalation == false
}

deny contains sprintf("%s: %s writes to its root", [input.metadata.name, container.name]) if {
	some container in containers
	not container.securityContext.readOnlyRootFilesystem
}

deny contains sprintf("%s: %s keeps capabilities", [input.metadata.name, container.name]) if {
	some container in containers
	not container.securityContext.capabilities.drop == ["ALL"]
}

deny contains sprintf("%s: %s has no limit of memory, or of CPU", [input.metadata.name, container.name]) if {
	some container in containers
	not limited(container)
}

limited(container) if {
	container.resources.limits.memory
	container.resources.limits.cpu
	container.resources.requests.memory
	container.resources.requests.cpu
}

deny contains sprintf("%s: %s has an image that may change under it", [input.metadata.name, container.name]) if {
	some container in containers
	not regex.match(`:[^:/]+$`, container.image)
}

deny contains sprintf("%s: %s has an image that may change under it", [input.metadata.name, container.name]) if {
	some container in containers
	endswith(container.image, ":latest")
}

deny contains sprintf("%s: runs as root, or as anyone", [input.metadata.name]) if {
	some pod in pods
	not nobody(pod)
}

nobody(pod) if {
	pod.securityContext.runAsNonRoot
	pod.securityContext.runAsUser > 0
	pod.securityContext.seccompProfile.type == "RuntimeDefault"
}

# Service links of a Service named hotswap look like our settings.
deny contains sprintf("%s: Kubernetes adds variables to it", [input.metadata.name]) if {
	some pod in pods
	not pod.enableServiceLinks == false
}

deny contains sprintf("%s: may ask Kubernetes' API", [input.metadata.name]) if {
	some pod in pods
	input.metadata.name != "hotswap-picker" # it watches pods and the pool
	not pod.automountServiceAccountToken == false
}

deny contains sprintf("%s: no policy of the network selects it", [input.metadata.name]) if {
	input.kind == "Deployment"
	labels := input.spec.template.metadata.labels
	not labels["app.kubernetes.io/part-of"] == "hotswap"
	input.metadata.name != "hotswap-picker" # it has a policy of its own
}
