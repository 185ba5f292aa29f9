{{- define "hotswap.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "hotswap.fullname" -}}
{{- $name := include "hotswap.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $full | trunc 44 | trimSuffix "-" }}
{{- end }}

{{- /* Whether a list has something of that name. */ -}}
{{- define "hotswap.named" -}}
{{- $name := last . }}
{{- range first . }}{{ if eq .name $name }}true{{ end }}{{ end }}
{{- end }}

{{- define "hotswap.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "hotswap.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "hotswap.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "hotswap.apiKeys" -}}
{{- .Values.apiKeys.existingSecret | default (printf "%s-api-keys" (include "hotswap.fullname" .)) }}
{{- end }}

{{- define "hotswap.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default (ternary "gpu" "cpu" .Values.gpu.enabled)) }}
{{- end }}

{{- /* The ConfigMap: what the chart sets, and over it what the values do. A large number must not become 8e+06. */ -}}
{{- define "hotswap.data" -}}
{{- $data := include "hotswap.settings" . | fromYaml }}
{{- range $name, $value := .Values.settings }}
{{- if kindIs "float64" $value }}
{{- $_ := set $data $name (ternary (int64 $value | toString) (toString $value) (eq $value (floor $value))) }}
{{- else }}
{{- $_ := set $data $name (toString $value) }}
{{- end }}
{{- end }}
{{- toYaml $data }}
{{- end }}

{{- /* Above the pause of preStop, HOTSWAP_DRAIN_SECONDS and the engine's own shutdown together. */ -}}
{{- define "hotswap.graceSeconds" -}}
{{- add 30 ((include "hotswap.data" . | fromYaml).HOTSWAP_DRAIN_SECONDS | float64 | ceil) }}
{{- end }}

{{- define "hotswap.bodyBytes" -}}
{{- (include "hotswap.data" . | fromYaml).HOTSWAP_MAX_BODY_BYTES | default "2000000" }}
{{- end }}

{{- /* Above the server's own deadline; what is no prediction has its time as well. */ -}}
{{- define "hotswap.routerSeconds" -}}
{{- max 310 (add 10 ((include "hotswap.data" . | fromYaml).HOTSWAP_DEADLINE_SECONDS | default "300" | float64 | ceil)) }}
{{- end }}

{{- define "hotswap.files" -}}
{{- $files := .Files }}
{{- range $path, $_ := .Files.Glob .glob }}
hotswap-{{ base $path }}: {{ $files.Get $path | toJson }}
{{- end }}
{{- end }}

{{- define "hotswap.rules" -}}
{{- $files := .Files }}
{{- range $path, $_ := .Files.Glob "files/rules/*" }}
{{ (fromYaml ($files.Get $path)).groups | toYaml }}
{{- end }}
{{- end }}
