{{/* Names, labels and images. */}}

{{- define "martlet.fullname" -}}
{{- if contains "martlet" .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-martlet" .Release.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{/* What selects a component's pods. Arguments: root, component, part (a family, a pool; may be empty). */}}
{{- define "martlet.selector" -}}
app.kubernetes.io/name: martlet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .part }}
martlet/part: {{ . }}
{{- end }}
{{- end -}}

{{- define "martlet.labels" -}}
{{ include "martlet.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Arguments: root, image (trainer), gpu (count). Images that compute come in two variants, the others in one. */}}
{{- define "martlet.image" -}}
{{- $variant := ternary "-cuda" "-cpu" (gt (int .gpu) 0) -}}
{{- if has .image (list "gateway" "quantizer" "evaluator" "trainer-tracking") }}{{ $variant = "" }}{{ end -}}
{{ .root.Values.images.repository }}/{{ .image }}:{{ .root.Values.images.tag | default .root.Chart.AppVersion }}{{ $variant }}
{{- end -}}

{{- define "martlet.secretName" -}}
{{ .Values.secrets.existingSecret | default (printf "%s-secrets" (include "martlet.fullname" .)) }}
{{- end -}}

{{/* The port of the object store's endpoint. */}}
{{- define "martlet.objectStorePort" -}}
{{- $url := urlParse .Values.objectStore.endpoint -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{ $port | default (eq $url.scheme "https" | ternary "443" "80") }}
{{- end -}}
